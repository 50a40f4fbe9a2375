"""Names of other libraries, kept for programs that move to pixvec: each module says whose they are."""
