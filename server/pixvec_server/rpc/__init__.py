"""Everything that knows gRPC: the only room that imports it."""
