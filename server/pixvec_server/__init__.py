"""pixvec's server: images in, vectors out, over gRPC."""
