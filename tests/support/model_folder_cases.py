"""The model folders that are compared with transformers: how each is made, and what is to come of it."""

import os
import shutil

from tests.support import tokenizer_layouts as layouts
from tests.support.model_folders import (
    INDEX,
    POINTER,
    ROWS,
    SINGLE,
    Case,
    as_type,
    both,
    changed,
    chat,
    family,
    fields,
    head_as_embedding,
    index_of,
    pipe,
    remove,
    renamed,
    repeat_head,
    saved_as,
    sentencepiece_only,
    sharded,
    stops_at,
    text,
    tie,
    with_tensor,
    without,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_CHAT = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"


_DEEP = '{"weight_map": ' + "[" * 300 + "]" * 300 + "}"
_OPEN_ENDED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
_DATED = "{{ bos_token }}{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
_Q = "model.layers.0.self_attn.q_proj"

WEIGHTS = {
    "one file": Case(lambda f: None),
    "shards and an index": Case(sharded()),
    "one file beside older shards": Case(sharded(keep_single=True, scale=2.0)),
    "one file and an index of lost shards": Case(text(INDEX, '{"weight_map": {"a": "gone.safetensors"}}')),
    "one file beside a broken index": Case(text(INDEX, "{")),
    "shards in a folder of their own": Case(sharded(under="shards/")),
    "shards that repeat a tensor": Case(sharded(twice=True)),
    "one file, named by config.json": Case(
        both(lambda f: shutil.copy(f / SINGLE, f / "w.safetensors"),
             changed(lambda s: {k: v * 2 for k, v in s.items()}),
             fields("config.json", transformers_weights="w.safetensors"))
    ),
    "a copy in half precision beside": Case(lambda f: shutil.copy(f / SINGLE, f / "model.fp16.safetensors") and None),
    "the authors' layout beside": Case(text("consolidated.safetensors", "no tensors")),
    "a pickle beside": Case(text("pytorch_model.bin", "no pickle")),
    "a variant alone": Case(
        lambda f: (f / SINGLE).rename(f / "model.fp16.safetensors") and None, oracle=lambda f: None
    ),
    "a file out of the folder": Case(index_of({"a": "../part.safetensors"}), "not in the model's folder"),
    "an absolute file": Case(index_of({"a": "/etc/part.safetensors"}), "not in the model's folder"),
    "an index with numbers": Case(index_of({"a": 7}), "names 7, which is no file"),
    "an index with lists": Case(index_of({"a": []}), r"names \[\], which is no file"),
    "an index without a map": Case(index_of(None), "no index of tensors"),
    "an index that is a list": Case(both(index_of({}), text(INDEX, "[]")), "not a JSON object"),
    "a deep index": Case(both(index_of({}), text(INDEX, _DEEP)), "nested deeper"),
    "an index of pickles": Case(index_of({"a": "pytorch_model.bin"}), "no safetensors file"),
    "a lost shard": Case(both(sharded(), remove("model-00001-of-00002.safetensors")), "lacks model-00001"),
    "two variants": Case(
        both(lambda f: shutil.copy(f / SINGLE, f / "model.a.safetensors"),
             lambda f: (f / SINGLE).rename(f / "model.b.safetensors")), "another file"
    ),
    "the authors' layout alone": Case(
        lambda f: (f / SINGLE).rename(f / "consolidated.safetensors") and None, "consolidated.safetensors is in another"
    ),
    "a pickle alone": Case(both(remove(SINGLE), text("pytorch_model.bin", "no pickle")), "pickle"),
    "no weights": Case(remove(SINGLE), "holds no model.safetensors"),
    "a pointer for weights": Case(text(SINGLE, POINTER), "Git LFS pointer"),
    "a pointer for an index": Case(both(remove(SINGLE), text(INDEX, POINTER)), "Git LFS pointer"),
    "a pipe for weights": Case(pipe(SINGLE), "named pipe"),
    "a pipe for an index": Case(both(remove(SINGLE), pipe(INDEX)), "named pipe"),
    "a folder for weights": Case(both(remove(SINGLE), lambda f: (f / SINGLE).mkdir()), "is a folder"),
    "half a file": Case(lambda f: os.truncate(f / SINGLE, 2000), "not a readable safetensors file"),
    "an adapter beside": Case(text("adapter_config.json", '{"base_model_name_or_path": "x"}'), "adapter beside"),
    "code of its own": Case(fields("config.json", auto_map={"AutoModelForCausalLM": "modeling.Mine"})),
}  # fmt: skip

NAMES = {
    "the base class": Case(saved_as("LlamaModel"), answers=False),
    "a sequence classifier": Case(saved_as("LlamaForSequenceClassification"), answers=False),
    "a token classifier": Case(saved_as("LlamaForTokenClassification"), answers=False),
    "no head": Case(without("lm_head.weight"), answers=False),
    "no prefix, with a head": Case(renamed("model.", "")),
    "the prefix twice": Case(renamed("model.", "model.model.")),
    "a tied head, not stored": Case(both(without("lm_head.weight"), tie)),
    "a tied head, stored": Case(both(changed(repeat_head), tie)),
    "a tied head, stored as the head": Case(head_as_embedding),
    "a tied head that differs": Case(tie, "differs from model.embed_tokens.weight"),
    "a value head beside": Case(with_tensor("v_head.summary.weight", 1, 16)),
    "a bias of the head": Case(with_tensor("lm_head.bias", ROWS)),
    "rotary buffers": Case(with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", 4)),
    "rotary buffers of the model": Case(with_tensor("model.rotary_emb.inv_freq", 4)),
    "positions as integers": Case(with_tensor("model.position_ids", 1, 8, dtype="int64")),
    "more layers than config.json": Case(fields("config.json", num_hidden_layers=1)),
    "fewer layers than config.json": Case(fields("config.json", num_hidden_layers=3), "missing model.layers.2"),
    "a compiled model": Case(renamed("", "_orig_mod."), "_orig_mod.model.*saved inside another"),
    "a parallel model": Case(renamed("", "module."), "module.model.*saved inside another"),
    "a question answerer": Case(saved_as("LlamaForQuestionAnswering"), "transformer.*saved inside another"),
    "a merged adapter's names": Case(renamed("", "base_model.model."), "saved inside another"),
    "a lost norm": Case(without("model.norm.weight"), "missing model.norm.weight"),
    "a bias that config.json lacks": Case(with_tensor(f"{_Q}.bias", 16), f"unexpected {_Q}.bias"),
    "norms that config.json lacks": Case(with_tensor("model.layers.1.self_attn.q_norm.weight", 8), "unexpected"),
    "more rows than config.json": Case(fields("config.json", vocab_size=ROWS - 8), "has shape"),
    "one tensor under two names": Case(with_tensor("norm.weight", 16), "stores model.norm.weight twice"),
    "float16": Case(as_type("float16")),
    "bfloat16": Case(as_type("bfloat16")),
    "float64": Case(as_type("float64")),
    "mixed types": Case(both(as_type("bfloat16", "mlp"), as_type("float16", "self_attn"))),
    "FP8": Case(as_type("float8_e4m3fn", "q_proj"), "F8_E4M3, part of a quantized"),
    "INT8": Case(as_type("int8", "q_proj"), "I8, part of a quantized"),
    "GPTQ": Case(
        both(without(f"{_Q}.weight"), with_tensor(f"{_Q}.qweight", 2, 16, dtype="int32")), "qweight.*quantized"
    ),
    "bitsandbytes": Case(with_tensor(f"{_Q}.weight.absmax", 4), "absmax.*quantized"),
    "compressed tensors": Case(with_tensor(f"{_Q}.weight_scale", 1), "weight_scale.*quantized"),
    "quantization in config.json": Case(
        fields("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "quantization_config"
    ),
}  # fmt: skip

TOKENIZERS = {
    "Llama 2": Case(family("Llama 2")),
    "Llama 3": Case(family("Llama 3", bos_token_id=0)),
    "Llama 3, another BOS in config.json": Case(family("Llama 3", bos_token_id=9)),
    "Qwen 2.5": Case(family("Qwen 2.5", bos_token_id=0)),
    "SmolLM": Case(family("SmolLM", bos_token_id=0)),
    "SmolLM 2": Case(family("SmolLM 2", bos_token_id=0)),
    "Gemma": Case(family("Gemma", bos_token_id=2)),
    "Phi-3": Case(family("Phi-3")),
    "OLMo 2": Case(family("OLMo 2", bos_token_id=0)),
    "Granite": Case(family("Granite", bos_token_id=0)),
    "bytes under the name of Llama": Case(
        both(family("DeepSeek"), fields("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"))
    ),
    "an unknown class": Case(fields("tokenizer_config.json", tokenizer_class="TheirTokenizer")),
    "EOS behind a text": Case(
        lambda f: layouts.llama(f, add_eos_token=True), oracle=lambda f: layouts.llama(f, add_eos_token=False)
    ),
    "code of its own": Case(
        fields("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokens.Slow", "tokens.Fast"]})
    ),
    "no EOS": Case(both(fields("config.json", eos_token_id=None), fields("tokenizer_config.json", eos_token=None))),
    "an id beyond the rows": Case(
        both(changed(lambda s: {k: v[:60] if len(v) == ROWS else v for k, v in s.items()}),
             fields("config.json", vocab_size=60)), r"has id 6\d, but the model's embedding has 60 rows"
    ),
    "SentencePiece alone": Case(sentencepiece_only, "tokenizer.model alone, which needs the package sentencepiece"),
    "no tokenizer": Case(remove("tokenizer.json", "tokenizer_config.json"), "no usable tokenizer"),
    "half a tokenizer": Case(lambda f: os.truncate(f / "tokenizer.json", 900), "no usable tokenizer"),
    "a pointer for a tokenizer": Case(text("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    "a pipe for a tokenizer": Case(pipe("tokenizer.json"), "named pipe"),
    "a pipe for a template": Case(pipe("chat_template.jinja"), "named pipe"),
    "settings that are a list": Case(text("tokenizer_config.json", "[]"), "not a JSON object"),
    "deep settings": Case(text("tokenizer_config.json", "[" * 5000 + "]" * 5000), "nested deeper"),
}  # fmt: skip

ANSWERS = {
    "one stop in config.json": Case(stops_at("config.json", 1)),
    "stops in config.json": Case(stops_at("config.json", 3)),
    "one stop in generation_config.json": Case(stops_at("generation_config.json", 1)),
    "stops in generation_config.json": Case(stops_at("generation_config.json", 3)),
    "stops in both": Case(both(stops_at("generation_config.json", 2), fields("config.json", eos_token_id=7))),
    "settings of sampling": Case(text("generation_config.json", '{"do_sample": true, "top_p": 0.9}')),
    "a stop that is a text": Case(text("generation_config.json", '{"eos_token_id": "</s>"}'), "not a whole number"),
    "a stop below zero": Case(text("generation_config.json", '{"eos_token_id": [-1]}'), "not a whole number"),
    "half a generation_config.json": Case(text("generation_config.json", "{"), "not valid JSON"),
}  # fmt: skip

CHATS = {
    "with BOS": Case(chat(LLAMA_CHAT), template="chat"),
    "without BOS": Case(chat("<|user|>\n{{ messages[0].content }}\n<|assistant|>\n"), template="chat"),
    "ChatML on SmolLM 2": Case(both(family("SmolLM 2", bos_token_id=0), chat(CHATML)), template="chat"),
    "ChatML on Qwen 2.5": Case(both(family("Qwen 2.5"), chat(CHATML)), template="chat"),
    "in a file of its own": Case(both(chat("no"), text("chat_template.jinja", LLAMA_CHAT)), template="chat"),
    "several, with a default": Case(
        chat([{"name": "default", "template": LLAMA_CHAT}, {"name": "rag", "template": "x"}]), template="chat"
    ),
    "more in a folder": Case(
        both(text("chat_template.jinja", LLAMA_CHAT), text("additional_chat_templates/rag.jinja", "x")), template="chat"
    ),
    "with reasoning and JSON": Case(
        chat("{{ bos_token }}{{ messages[0] | tojson }}{% generation %}x{% endgeneration %}"), template="chat"
    ),
    "with the date that it is given": Case(
        chat("{{ date_string | default('none') }} {{ messages[0].content }}"), template="chat",
        oracle=chat("26 Jul 2024 {{ messages[0].content }}"),
    ),
    "with today's date": Case(
        chat(_DATED), template="chat", oracle=chat("{{ bos_token }}2024-07-26 {{ messages[0].content }}")
    ),
    "that raises": Case(chat("{{ raise_exception('a system message is needed') }}"), "system message", "chat"),
    "that divides by zero": Case(chat("{{ 1 / 0 }}{{ messages[0].content }}"), "ZeroDivisionError", "chat"),
    "that is no template": Case(chat("{% for %}"), "TemplateSyntaxError", "chat"),
    "that wants a second message": Case(chat("{{ messages[1].content }}"), "UndefinedError", "chat"),
    "that reaches out": Case(chat("{{ ''.__class__.__mro__ }}{{ messages[0].content }}"), "SecurityError", "chat"),
    "without the message": Case(chat("[INST] [/INST]"), "leaves the user's message out", "chat"),
    "that wants a list of parts": Case(
        chat("{% for part in messages[0].content %}{{ part.text }}{% endfor %}"), "leaves the user's message", "chat"
    ),
    "that draws lots": Case(
        chat("{{ range(9999) | random }}{{ messages[0].content }}"), "another text each time", "chat"
    ),
    "that does not end": Case(chat(_OPEN_ENDED), "does not end", "chat"),
    "several, no default": Case(chat([{"name": "rag", "template": "x"}]), "one of several", "chat"),
    "none": Case(lambda f: None, "no chat template", "chat"),
}  # fmt: skip

CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "weights": WEIGHTS, "names": NAMES, "tokenizer": TOKENIZERS, "answers": ANSWERS, "chat template": CHATS
    }.items()
    for name, case in cases.items()
}  # fmt: skip
"""Name -> folder."""
