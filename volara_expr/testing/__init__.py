"""For tests, of this project and of ops written elsewhere: the blockwise check, random pipelines, generated volumes."""
