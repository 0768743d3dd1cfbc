"""Build what several benchmarks share: random models of a Llama shape, prompts for them, and waiting for the device."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


def sync():
    "Wait until the GPU has finished its work; do nothing without one."
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_llama(device, **config):
    "Return a model with random bfloat16 weights, made on `device`; `config` are fields of `LlamaConfig`."
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**config))
    finally:
        torch.set_default_dtype(before)


def folded(prompts, vocab, n):
    "Return `n` prompts: the given ones in turn, their ids folded into the vocabulary of the model that reads them."
    return [[t % vocab for t in prompts[i % len(prompts)]] for i in range(n)]


def endless(engine):
    "Let an engine ignore what ends an answer, so that every answer has as many tokens as its limit; returns it."
    engine.ends, engine.stop_on_json, engine.stop_on_loop = set(), False, False
    return engine
