"""What TRL's losses look at."""

# Their value depends on which pairs share a micro-batch: they sort it, keep a running mean over it, or take a mean over
# its tokens. All others are a mean of what each pair gives alone.
NOT_BY_PAIR = frozenset({"aot", "aot_unpaired", "bco_pair", "sft"})
