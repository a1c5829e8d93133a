// Which bytes of a file are there while it comes in pieces, several at a time. A piece fills from its first byte on, so a
// number for each says everything, and a download goes on at the very byte where it stopped.

/** Bytes of a piece: one request. */
export const PIECE = 4 << 20;

export class Pieces {
  /** `bytes`: of the whole file. `filled`: bytes there of each piece, of an earlier visit; what cannot be is nothing. */
  constructor(bytes, filled = null) {
    this.bytes = bytes;
    this.filled = new Uint32Array(Math.ceil(bytes / PIECE));
    if (filled?.every((count, i) => count <= this.size(i))) this.filled.set(filled);
  }

  get count() {
    return this.filled.length;
  }

  start(piece) {
    return piece * PIECE;
  }

  size(piece) {
    return Math.min(PIECE, this.bytes - this.start(piece));
  }

  isWhole(piece) {
    return this.filled[piece] === this.size(piece);
  }

  /** Bytes there. */
  get done() {
    return this.filled.reduce((sum, count) => sum + count, 0);
  }

  /** Bytes there from the file's first on, without a gap. */
  get front() {
    const open = this.filled.findIndex((_, piece) => !this.isWhole(piece));
    return open < 0 ? this.bytes : this.start(open) + this.filled[open];
  }

  /** What of `length` bytes that came for the file's byte `at` goes on where a piece stopped: [{piece, from, to}]. */
  missing(at, length) {
    const parts = [];
    for (let piece = Math.floor(at / PIECE); piece < this.count && this.start(piece) < at + length; piece += 1) {
      const next = this.start(piece) + this.filled[piece];
      const end = Math.min(this.start(piece) + this.size(piece), at + length);
      if (next >= at && next < end) parts.push({ piece, from: next - at, to: end - at });
    }
    return parts;
  }
}
