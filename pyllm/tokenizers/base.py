"""`Tokenizer`: what all vocabularies have in common, and the little each kind must add."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from types import MappingProxyType
from typing import NamedTuple, SupportsIndex

from pyllm.errors import TokenizerError
from pyllm.formats.checkpoint import Checkpoint
from pyllm.machine import available_threads
from pyllm.tokenizers.decoder import Decoder
from pyllm.tokenizers.matcher import PieceMatcher


@dataclass(frozen=True)
class Traits:
    """What a vocabulary's file says about it.

    `control` and `user_defined` give the texts of tokens that are never made by merging: control tokens only come
    from text where the caller asks for it, user-defined ones wherever their text stands. `prefix` is put before a
    text when it is encoded; a text begins at the first id, and after each id in `text_starts`. `also_before`: what
    follows BOS before a text. `chat_templates`: by name; the usual one is "default".
    """

    source: str  # the file, for messages
    vocab_size: int
    bos_id: int | None = None
    eos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] | None = None  # None: `eos_ids`
    add_bos: bool = False
    add_eos: bool = False
    prefix: str = ""
    text_starts: frozenset[int] = frozenset()
    control: Mapping[int, str] = field(default_factory=dict)
    user_defined: Mapping[int, str] = field(default_factory=dict)
    also_before: tuple[int, ...] = ()
    chat_templates: Mapping[str, str] = field(default_factory=dict)


class Stretch(NamedTuple):
    """A non-empty text without whole pieces. `at_start`: a text begins here, so the vocabulary's `prefix` applies."""

    text: str
    at_start: bool


class Tokenizer(ABC):
    """Text to token ids and back. Immutable after loading: any number of threads may use one at once.

    vocab_size: number of ids, which are 0 to vocab_size - 1.
    bos_id: the id that begins a text, or None. add_bos: whether this model's texts begin with it.
    eos_id: the id that `encode(eos=True)` ends with, or None. add_eos: whether the texts that this model was made for,
        such as those that an embedding model reads, end with it. eos_ids: all ids that end a text or a turn.
    stop_ids: ids at which generation stops; the same as eos_ids, but for llama2.c's files.
    control_ids: ids that add nothing to the text, and that text becomes only with `special=True`.
    chat_templates: the templates of conversations by name, as Jinja source; the usual one is "default".
    """

    def __init__(self, traits: Traits) -> None:
        self._traits = traits
        self.vocab_size: int = traits.vocab_size
        self.bos_id: int | None = traits.bos_id
        self.eos_id: int | None = traits.eos_id
        self.eos_ids: frozenset[int] = traits.eos_ids
        self.stop_ids: frozenset[int] = traits.eos_ids if traits.stop_ids is None else traits.stop_ids
        self.control_ids: frozenset[int] = frozenset(traits.control)
        self.chat_templates: Mapping[str, str] = MappingProxyType(dict(traits.chat_templates))
        self.add_bos: bool = traits.add_bos
        self.add_eos: bool = traits.add_eos
        self._known_bytes: dict[int, bytes] = {}

    @property
    def chat_template(self) -> str | None:
        """The usual template of conversations, or None. May be set: your own then takes the place of all there are."""
        return self.chat_templates.get("default")

    @chat_template.setter
    def chat_template(self, source: str) -> None:
        self.chat_templates = MappingProxyType({"default": source})

    # ---- loading ----------------------------------------------------------------------------------------------------

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.bin`, `tokenizer.model` or `tokenizer.json`, a folder with one, or a GGUF's vocabulary.

        The kind is found from the first bytes. Raises `TokenizerError` where the file holds no usable vocabulary,
        `ModelFormatError` for a damaged GGUF, and `OSError` as `open` does.
        """
        from pyllm.tokenizers.loading import load  # here: it knows all kinds, and each of them knows this class

        return load(path)

    @staticmethod
    def from_checkpoint(checkpoint: Checkpoint) -> Tokenizer | None:
        """The vocabulary in a model's file; None where it has none. Cheap: tables are built by the first encode.

        Raises `TokenizerError` for a damaged vocabulary or a kind that is not known here.
        """
        from pyllm.tokenizers.gguf import from_metadata  # here: see `load`

        return from_metadata(checkpoint.metadata, str(checkpoint.path))

    # ---- encoding ---------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, bos: bool | None = None, eos: bool = False, special: bool = False) -> list[int]:
        """Token ids of a text.

        `bos`: begin with the BOS id; None does what the model's file says. `eos`: end with the EOS id. `special`:
        control tokens in the text become such; otherwise they are text like any other. Raises `TypeError` for what
        is no `str`, `TokenizerError` for lone surrogates and for a BOS or EOS that the vocabulary does not have.
        """
        parts = (self._all_whole_pieces if special else self._user_pieces).split(checked(text))
        if len(parts) == 1 and not isinstance(parts[0], int):  # most texts: nothing to arrange
            ids = self._encode_text(parts[0])
        else:
            ids = self.encode_parts(parts)
        return self.frame(ids, bos=bos, eos=eos)

    def encode_after(self, token: int, text: str) -> list[int]:
        """Token ids of a text that goes on behind `token`: nothing is put before it that only begins a text."""
        return self.encode_parts([token, *self._user_pieces.split(checked(text))])[1:]

    def encode_batch(
        self, texts: Iterable[str], *, bos: bool | None = None, eos: bool = False, special: bool = False
    ) -> list[list[int]]:
        """`encode` for each of several texts, at once on all threads that this process may use."""
        if isinstance(texts, str):
            raise TypeError("encode_batch() takes several texts; a single one goes to encode()")
        split = (self._all_whole_pieces if special else self._user_pieces).split
        every = [self._arranged(split(checked(text))) for text in texts]
        stretches = [part for parts in every for part in parts if not isinstance(part, int)]
        encoded = iter(self._encode_stretches(stretches, available_threads()))
        return [self.frame(_filled(parts, encoded), bos=bos, eos=eos) for parts in every]

    def split_control(self, text: str) -> list[str | int]:
        """A text as ids of the control tokens in it and the stretches between them."""
        return self._control_pieces.split(text)

    def split_user_defined(self, text: str) -> list[str | int]:
        """A text as ids of the user-defined tokens in it and the stretches between them."""
        return self._user_pieces.split(text)

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Ids of a text given as ids and the stretches between them, in which no whole piece is looked for."""
        arranged = self._arranged(parts)
        stretches = [part for part in arranged if not isinstance(part, int)]
        return _filled(arranged, iter(self._encode_stretches(stretches, 1)))

    def _arranged(self, parts: Iterable[str | int]) -> list[int | Stretch]:
        """Ids, and stretches that are not empty, which know whether a text begins with them."""
        arranged: list[int | Stretch] = []
        at_start = True
        for part in parts:
            if isinstance(part, int):
                arranged.append(part)
                at_start = part in self._traits.text_starts
            elif part:
                arranged.append(Stretch(part, at_start))
                at_start = False
        return arranged

    def frame(self, ids: list[int], *, bos: bool | None, eos: bool) -> list[int]:
        """Ids with BOS before and EOS after them, as asked."""
        if self.add_bos if bos is None else bos:
            ids = [self._need(self.bos_id, "BOS"), *self._traits.also_before, *ids]
        return [*ids, self._need(self.eos_id, "EOS")] if eos else ids

    # ---- decoding ---------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of some ids. Control tokens add nothing; bytes that are no UTF-8 become U+FFFD.

        Raises `ValueError` for an id outside the vocabulary.
        """
        take = self.decoder().take
        return b"".join([take(index(token)) for token in ids]).decode("utf-8", "replace")

    def decoder(self) -> Decoder:
        """An incremental decoder for one text."""
        return Decoder(self.token_bytes, self._traits.prefix.encode(), self._traits.text_starts)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to the text; b"" for control tokens. Raises `ValueError` for an id out of range."""
        data = self._known_bytes.get(token)
        if data is None:
            token = self._check_id(token)
            data = b"" if token in self.control_ids else self._bytes_of(token)
            self._known_bytes[token] = data
        return data

    def id_to_piece(self, token: int) -> str:
        """The token as the vocabulary's file writes it. Raises `ValueError` for an id out of range."""
        return self._piece(self._check_id(token))

    @property
    def control_texts(self) -> Mapping[int, str]:
        """How control tokens are written in text, by id; "" for those that are not."""
        return self._traits.control

    @property
    def user_defined_texts(self) -> Mapping[int, str]:
        """The texts that become one token wherever they stand, by id."""
        return self._traits.user_defined

    def special_text(self, token: int) -> str:
        """How a token that templates name, such as BOS, is written in text."""
        return self._traits.control.get(token) or self.id_to_piece(token)

    # ---- what each kind of vocabulary adds --------------------------------------------------------------------------

    @abstractmethod
    def _encode_stretches(self, stretches: Sequence[Stretch], threads: int) -> Sequence[Sequence[int]]:
        """Ids of some stretches, on at most so many threads."""

    def _encode_text(self, text: str) -> list[int]:
        """Ids of one stretch that begins a text: what most texts are, so that each kind may be quick about it."""
        return list(self._encode_stretches([Stretch(text, True)], 1)[0])

    @abstractmethod
    def _bytes_of(self, token: int) -> bytes:
        """What a token that is no control token, and whose id is in range, adds to the text."""

    @abstractmethod
    def _piece(self, token: int) -> str:
        """The file's own writing of a token whose id is in range."""

    # ---- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _control_pieces(self) -> PieceMatcher:
        return PieceMatcher(self._traits.control)

    @cached_property
    def _user_pieces(self) -> PieceMatcher:
        return PieceMatcher(self._traits.user_defined)

    @cached_property
    def _all_whole_pieces(self) -> PieceMatcher:
        return PieceMatcher({**self._traits.control, **self._traits.user_defined})

    def _check_id(self, token: SupportsIndex) -> int:
        token = index(token)
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary, 0 to {self.vocab_size - 1}")
        return token

    def _need(self, token: int | None, name: str) -> int:
        if token is None:
            raise TokenizerError(f"{self._traits.source}: the vocabulary has no {name} token")
        return token

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.vocab_size} tokens from {self._traits.source}>"


def _filled(parts: Iterable[int | Stretch], encoded: Iterator[Sequence[int]]) -> list[int]:
    """Ids of parts; the stretches among them are encoded in order."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        else:
            ids += next(encoded)
    return ids


def checked(text: str) -> str:
    """The text. Raises `TypeError` for what is no `str` and `TokenizerError` for lone surrogates, no characters."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, which is half "
            "of a character: the text was decoded wrongly"
        ) from None
    return text
