"""Image files without what cameras and people wrote into them, the pixels left as they are, bit for bit."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

from t2i.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DROPPED = {b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME"}
_SOS, _EOI = 0xDA, 0xD9
_JPEG_DROPPED = {0xE1, 0xED, 0xFE}
"""APP1 (Exif, XMP), APP13 (IPTC), comments."""


def without_metadata(data: bytes, suffix: str, where: str) -> bytes:
    """A JPEG, PNG, WebP or BMP file without Exif, XMP, IPTC, comments and texts; the orientation is kept.

    suffix: the file's ending. Colour profiles stay, because they decide how pixels look. Raises DataError for another
    format, or a file that is not of its format.
    """
    strip = _FORMATS.get(suffix.lower())
    if strip is None:
        raise DataError(
            f"{where}: {suffix} files are not rewritten without their metadata; convert it to PNG, or set "
            "strip_metadata: false."
        )
    try:
        return strip(data)
    except (struct.error, IndexError, ValueError, OSError) as error:
        raise DataError(f"{where}: not a whole {suffix} file ({error}).") from error


def _orientation(data: bytes) -> bytes:
    """An Exif block that holds the orientation alone, without its "Exif" mark; empty if the image stands upright."""
    import io

    from PIL import Image

    from t2i.data.images import ORIENTATION, orientation

    with Image.open(io.BytesIO(data)) as image:
        turn = orientation(image)
    if turn == 1:
        return b""
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _jpeg(data: bytes) -> bytes:
    if data[:2] != b"\xff\xd8":
        raise ValueError("no start mark")
    kept = [data[:2]]
    if exif := _orientation(data):
        kept.append(struct.pack(">BBH", 0xFF, 0xE1, len(exif) + 8) + b"Exif\0\0" + exif)
    place = 2
    while place < len(data) and data[place + 1] != _EOI:
        start, place = place, _jpeg_part_end(data, place)
        marker, body = data[start + 1], data[start + 4 : place]
        # MPF lists further pictures behind the end of this one, left out with it: they have Exif of their own.
        if marker not in _JPEG_DROPPED and not (marker == 0xE2 and body.startswith(b"MPF\0")):
            kept.append(data[start:place])
    return b"".join([*kept, data[place : place + 2]])


def _jpeg_part_end(data: bytes, place: int) -> int:
    """Where the segment that begins here ends; a start of scan with the scan behind it."""
    if data[place] != 0xFF:
        raise ValueError("no segment where one must be")
    if data[place + 1] == 0xFF:
        return place + 1
    (length,) = struct.unpack_from(">H", data, place + 2)
    end = place + 2 + length
    if data[place + 1] != _SOS:
        return end
    # In a scan 0xFF stands for itself before 0, and before the numbers of restart marks.
    while (end := data.find(b"\xff", end)) >= 0 and end + 1 < len(data) and _is_in_scan(data[end + 1]):
        end += 2
    # A file that was cut ends with its scan.
    return len(data) if end < 0 else end


def _is_in_scan(after: int) -> bool:
    return after == 0 or 0xD0 <= after <= 0xD7


def _png(data: bytes) -> bytes:
    if not data.startswith(_PNG):
        raise ValueError("no signature")
    kept = [_PNG]
    for number, (kind, body) in enumerate(_png_chunks(data)):
        if kind not in _PNG_DROPPED:
            kept.append(_png_chunk(kind, body))
        if number == 0 and (exif := _orientation(data)):
            kept.append(_png_chunk(b"eXIf", exif))
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG)
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, data[place + 8 : place + 8 + length]
        place += 12 + length
        if kind == b"IEND":
            return


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _webp(data: bytes) -> bytes:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise ValueError("no signature")
    chunks: list[tuple[bytes, bytes]] = []
    place = 12
    while place < len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        chunks.append((kind, data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    exif = _orientation(data)
    kept = [(kind, body) for kind, body in chunks if kind not in (b"EXIF", b"XMP ")]
    if kept[0][0] == b"VP8X":
        # Bits 3 and 2 of the flags announce Exif and XMP.
        flags = kept[0][1][0] & ~0x0C | (0x08 if exif else 0)
        kept[0] = (b"VP8X", bytes([flags]) + kept[0][1][1:])
        kept += [(b"EXIF", exif)] if exif else []
    body = b"".join(struct.pack("<4sI", kind, len(inner)) + inner + b"\0" * (len(inner) % 2) for kind, inner in kept)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


_FORMATS: Mapping[str, Callable[[bytes], bytes]] = {
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".jpe": _jpeg,
    ".jfif": _jpeg,
    ".png": _png,
    ".webp": _webp,
    ".bmp": lambda data: data,
}
