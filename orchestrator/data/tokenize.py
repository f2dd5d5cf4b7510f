"""Text to token ids: the file that knows the `tokenizers` library."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from orchestrator.data import files
from orchestrator.errors import DataError

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257
"""256 bytes and the end of text."""
_END_OF_TEXT_NAMES = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001  DeepSeek's spelling
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: any text can be encoded, little text yields fewer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path_or_url: str) -> Tokenizer:
    """Read a Hugging Face tokenizer.json. Raises DataError."""
    try:
        text = files.read_bytes(path_or_url).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.tokenizer={path_or_url} can't be read: {error}") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"data.tokenizer={path_or_url} is not a Hugging Face tokenizer.json: {error}") from error


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """One more than the largest token id, which is what an embedding needs rows for."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def end_of_text_id(tokenizer: Tokenizer, name: str) -> int:
    """The token that ends a document; `name` names the tokenizer in errors. Raises DataError."""
    for candidate in _END_OF_TEXT_NAMES:
        if (token_id := tokenizer.token_to_id(candidate)) is not None:
            return token_id
    raise DataError(
        f"data.tokenizer={name} has no end-of-text token; add one of {', '.join(_END_OF_TEXT_NAMES)} to it, "
        "or leave data.tokenizer out to train one"
    )


def encode(tokenizer: Tokenizer, texts: Sequence[str], eos_token_id: int, dtype: str) -> list[NDArray]:
    """Token ids of each text, the end of text behind it. A special token's name in a text is plain text."""
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array([*encoding.ids, eos_token_id], dtype=dtype) for encoding in encodings]
