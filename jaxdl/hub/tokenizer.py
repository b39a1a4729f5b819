"""Text <-> token ids, with the special tokens and the chat template of a model."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from jaxdl.hub.chat import render
from jaxdl.hub.files import HubError


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Turns text into ids and back; `open_tokenizer` makes one of published files.

    core: the `tokenizers.Tokenizer` that does the work.
    special: the model's names for tokens, `{"bos_token": "<s>", "eos_token": "</s>"}`.
    eos_ids: every id that ends a text; a chat model often has two.
    padding_side: where `encode_batch` fills rows up, "right" or "left".
    templates: chat templates by name, of which "default" is the usual.
    """

    core: Any = dataclasses.field(repr=False)
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    eos_ids: frozenset[int] = frozenset()
    padding_side: str = "right"
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, with those of added tokens."""
        return self.core.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        return self.id_of(self.special.get("bos_token"))

    @property
    def pad_id(self) -> int | None:
        return self.id_of(self.special.get("pad_token"))

    def id_of(self, token: str | None) -> int | None:
        """The id of one whole token, None if there is no such token."""
        return None if token is None else self.core.token_to_id(token)

    def token_of(self, id: int) -> str | None:
        """The token of an id, spelled as in the vocabulary: `Ġthe`."""
        return self.core.id_to_token(int(id))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """The ids of a text, with those that the model wants around it (bos, [CLS]).

        A chat template writes these itself: there `add_special=False`.
        """
        return self.core.encode(text, add_special_tokens=add_special).ids

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        add_special: bool = True,
        length: int | None = None,
        side: str | None = None,
        pad_id: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Several texts as one array: ids int32 [batch, seq], and a mask, True at text.

        length: of each row; that of the longest text unless given. A text that is
        longer is an error, because cutting it is a decision of the caller's.
        pad_id: what fills the rest; the model's, or 0, which the mask hides, if it has
        none.
        """
        encodings = self.core.encode_batch(list(texts), add_special_tokens=add_special)
        rows = [encoding.ids for encoding in encodings]
        longest = max(map(len, rows), default=0)
        length = longest if length is None else length
        side = self.padding_side if side is None else side
        if side not in ("left", "right"):
            raise ValueError(f"encode_batch: expected side left or right, got {side!r}")
        if longest > length:
            raise ValueError(
                f"encode_batch: expected texts of at most {length} tokens, got "
                f"{longest}; cut them, or give a larger length"
            )
        fill = self.pad_id if pad_id is None else pad_id
        ids = np.full((len(rows), length), fill or 0, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, tokens in enumerate(rows):
            start = length - len(tokens) if side == "left" else 0
            ids[row, start : start + len(tokens)] = tokens
            mask[row, start : start + len(tokens)] = True
        return ids, mask

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 come out as U+FFFD."""
        whole = [int(id) for id in ids]
        return self.core.decode(whole, skip_special_tokens=skip_special)

    def decode_batch(
        self, rows: Iterable[Iterable[int]], *, skip_special: bool = True
    ) -> list[str]:
        """The texts of several rows of ids."""
        return [self.decode(row, skip_special=skip_special) for row in rows]

    def stream(self, *, skip_special: bool = True) -> "TextStream":
        """Decodes ids one by one, as a model gives them; see `TextStream`."""
        return TextStream(self, skip_special)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        *,
        template: str = "default",
        **variables: Any,
    ) -> str:
        """Writes a conversation as the text that the model was trained on.

        messages: `[{"role": "user", "content": "Hello"}, ...]`. The template came with
        the model and runs in a sandbox: it sees the messages, special tokens and
        `variables` (`tools=[...]`) alone. Encode the text with `add_special=False`.
        Raises HubError if there is no template, or for what it says it cannot write.
        """
        if template not in self.templates:
            known = ", ".join(self.templates) or "none"
            raise HubError(f"expected a chat template {template!r}, there is {known}")
        words = {"tools": None, "documents": None, **self.special, **variables}
        words |= {"add_generation_prompt": add_generation_prompt}
        return render(self.templates[template], messages, words)


class TextStream:
    """Text as it grows, id by id, and never half a character.

    `push(id)` returns the text that became certain, `finish()` the rest; all of it
    together is what `decode` gives of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        core = tokenizer.core
        added = core.get_added_tokens_decoder() if skip_special else {}
        self.tokenizer = tokenizer
        self.skipped = {id for id, token in added.items() if token.special}
        # Where bytes are tokens of their own, one that is missing spoils all of a run.
        self.spoils_all = "ByteFallback" in repr(core.decoder)
        # The ids since a place between two characters, and the text of them. Those up
        # to `context` were given before: a first token would lose its space.
        self.ids: list[int] = []
        self.context = 0
        self.given = ""

    def push(self, id: int) -> str:
        """The text that one more id makes certain; often "" within a character."""
        if int(id) in self.skipped:
            return ""
        self.ids.append(int(id))
        text = self._text()
        whole = not text.endswith("\ufffd")
        certain = text.rstrip("\ufffd") if self.spoils_all else text[: len(text) - 1]
        new = self._give(text if whole else certain)
        if whole:
            self.ids = self.ids[self.context :]
            self.context, self.given = len(self.ids), self._text()
        return new

    def finish(self) -> str:
        """The rest, whole characters or not."""
        return self._give(self._text())

    def _text(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special=False)

    def _give(self, certain: str) -> str:
        new = certain[len(self.given) :]
        self.given += new
        return new
