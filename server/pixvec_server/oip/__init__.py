"""Messages of the Open Inference Protocol, generated from proto/ into a package of their own."""
