"""The memory of one training step: activations and logits. Pure functions, bytes on one device; no torch.

A micro-batch of n pairs is 2n rows: chosen and rejected go through the model together (TRL's collator).
"""

from preftune.memory import Settings, lora_parameters
from preftune.model_shape import ModelShape

# TRL 1.16's tiles of the LM head: kernels/chunked_logprob.py and trainer/utils.py
HEAD_TOKENS, HEAD_VOCAB = 4096, 32768
# Without Triton (on a CPU) the tile goes through torch operations that hold so many float32 copies of it.
CPU_TILE_COPIES = 7


def layer_activations(shape: ModelShape, s: Settings) -> float:
    """Bytes that autograd keeps of one layer for the backward pass.

    Counted tensor by tensor over transformers' modules, after Korthikanti et al. (arXiv 2205.05198, section 4.1),
    whose 34sbh + 5as²b is GPT-3's layer with dropout. A norm computes in float32 and keeps what it reads. A linear
    module keeps its input only where its own weight or an adapter is trained; under autocast each module that reads
    another type keeps a 16-bit copy of its own. sdpa keeps queries, repeated keys and values, output and, for padded
    batches, the mask of each row; eager attention keeps the scores.
    """
    h, b, full = shape.hidden, s.width, s.lora is None
    stream = s.weight_bytes
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    normed = {"rms": stream, "gemma": 4, "layer": 0}[shape.norm] if full else 0
    norms = shape.norms * h * (4 + normed)
    if shape.head_norms:
        norms += (q + kv) * (4 + (b if full else 0))
    trained = shape.linears if s.lora is None else s.lora
    # Does a module cast what it reads? Full: float32 stream into 16 bits. LoRA: adapters of another type than that.
    casts = s.mixed and (stream != b if full else s.adapter_bytes != b)
    inputs = 0.0
    for reads, wide in (("attention_in", h), ("attention_out", q), ("mlp_in", h), ("mlp_out", 0)):
        readers = [m for m in trained if m.reads == reads]
        width = wide or (readers[0].inputs if readers else 0)
        written_in_16_bits = full and reads in ("attention_out", "mlp_out")
        copies = len(readers) if casts and not written_in_16_bits else min(len(readers), 1)
        if reads == "attention_out" and s.attention != "eager" and (full or not casts):
            copies = 0  # it is the attention's output, which is kept anyway
        inputs += copies * b * width
    if s.lora is not None:
        inputs += len(s.lora) * s.rank * b  # between the two matrices of an adapter
    keys = kv if s.attention == "flash" else q
    attention = b * (q + 2 * keys)
    if s.attention == "eager":
        scores = (4 if b == 4 else 6) + (b if shape.softcap else 0)  # softmax in float32, its 16-bit copy, the tanh
        attention += shape.heads * s.length * scores
    else:
        attention += b * q + 4 * shape.heads + (b * s.length if s.attention == "sdpa" else 0)
    branch = shape.intermediate * b
    mlp = branch * (3 if shape.gated else 1)
    if shape.experts:
        read = branch + b * h if full or s.lora_on_experts else 0
        mlp = shape.active_experts * (mlp + b * h + read) + 8 * shape.experts
    merged = 0.0
    if s.lora_on_experts:  # peft adds the adapters' product to all experts' weights, and computes with that
        merged = 3 * shape.experts * h * shape.intermediate * s.weight_bytes
    return s.tokens * (norms + inputs + attention + mlp) + merged


def cast_weights(shape: ModelShape, s: Settings) -> float:
    """Bytes of the 16-bit copies that autocast makes of float32 weights, over all layers."""
    casts = s.mixed and s.weight_bytes == 4 and s.quantized is None
    adapters = 2 * lora_parameters(shape, s) if s.mixed and s.adapter_bytes == 4 else 0
    return (2 * (shape.linear_parameters + shape.expert_parameters) if casts else 0) + adapters


def kept_activations(shape: ModelShape, s: Settings) -> float:
    """Bytes kept between forward and backward pass: all of every layer, or each layer's input (checkpointing:
    Chen et al., arXiv 1604.06174), and the final norm's."""
    stream = s.tokens * shape.hidden * s.weight_bytes
    final_norm = s.tokens * shape.hidden * 4 + (stream if s.lora is None else 0)
    return shape.layers * (stream if s.checkpointing else layer_activations(shape, s)) + final_norm


def working(shape: ModelShape, s: Settings) -> float:
    """Bytes at work inside one layer beside what it keeps: gradients of the MLP's branches, float32 copies that
    adapters make of their input, the module that is being unpacked from 4 bits."""
    i, h = shape.intermediate * max(shape.active_experts, 1), shape.hidden
    each = 2 * i * s.width
    if s.mixed:
        float32_copies = s.lora is not None and s.adapter_bytes == 4
        each = (6 if float32_copies else 4) * i + 9 * h
    widest = max((m.parameters for m in shape.linears), default=0)
    return s.tokens * each + (widest * s.width if s.quantized else 0)


def logits(shape: ModelShape, s: Settings) -> float:
    """Bytes at the LM head, at their peak in the backward pass.

    DPO: TRL's fused head never builds all logits. It keeps the answers' hidden states, and works on one tile of
    4096 tokens x 32768 words, with float32 gradients of the hidden states and, where the head is trained, of its
    weight. Every token is counted as an answer's. ORPO builds all logits in float32 and slices them: 14 bytes each
    at the peak (measured with TRL 1.16's own functions).
    """
    if s.full_logits:
        return 14.0 * s.tokens * shape.vocab
    rows = min(s.tokens, HEAD_TOKENS)
    tile = rows * HEAD_VOCAB * s.width
    if s.on_cpu:
        tile += CPU_TILE_COPIES * 4 * rows * min(shape.vocab, HEAD_VOCAB)
    gradient = 4 * shape.embedding if s.lora is None else 0
    words = min(shape.vocab, HEAD_VOCAB) * shape.hidden * s.width if s.weight_bytes != s.width else 0
    return tile + s.tokens * shape.hidden * (s.weight_bytes + 4) + gradient + words
