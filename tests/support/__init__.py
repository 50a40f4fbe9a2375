"""What the tests share: photographs, servers, tiny models, virtual time."""
