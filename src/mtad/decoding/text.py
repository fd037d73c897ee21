"""Tokens become text one at a time; stop strings are found across token borders."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Turns token ids into text; must be a pure function."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Decodes a growing answer incrementally, holding back unfinished characters and possible stop strings.

    Args:
        decode: Turns token ids into text.
        stop: Texts that end the answer.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._token_ids: list[int] = []
        self._window_start = 0
        self._window_end = 0
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Add one token; returns the text that is final now. After a stop match `is_stopped` is true."""
        self._token_ids.append(token_id)
        before = self._decode(self._token_ids[self._window_start : self._window_end])
        after = self._decode(self._token_ids[self._window_start :])
        if len(after) <= len(before) or after.endswith(_REPLACEMENT):
            return ""
        self._window_start, self._window_end = self._window_end, len(self._token_ids)
        self._held += after[len(before) :]
        return self._release()

    def finish(self) -> str:
        """Release what was held back; call once, after the last token."""
        if self.is_stopped:
            return ""
        before = self._decode(self._token_ids[self._window_start : self._window_end])
        rest = self._decode(self._token_ids[self._window_start :])[len(before) :]
        self._held += rest
        final = self._release()
        return final if self.is_stopped else final + self._emit(len(self._held))

    def _release(self) -> str:
        """Cut at a stop match, else hold back the longest tail that a stop string could begin with."""
        matches = [self._held.find(text) for text in self._stop]
        found = [index for index in matches if index >= 0]
        if found:
            self.is_stopped = True
            return self._emit(min(found))
        return self._emit(len(self._held) - self._possible_stop_length())

    def _possible_stop_length(self) -> int:
        longest = 0
        for text in self._stop:
            for length in range(min(len(text) - 1, len(self._held)), longest, -1):
                if self._held.endswith(text[:length]):
                    longest = length
                    break
        return longest

    def _emit(self, length: int) -> str:
        final, self._held = self._held[:length], self._held[length:]
        self.text += final
        return final
