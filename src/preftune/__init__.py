"""preftune: preference data in, one honest verdict against the SFT model out."""
