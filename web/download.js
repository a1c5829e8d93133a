// Downloading of a model's files, several pieces at once, into parts (place.js): those of a place, where the store keeps
// them, or of memory. Texts and JSON of the site, too.

import { Fault } from "./fault.js";
import { Pieces } from "./pieces.js";
import { Transfer, isPassing } from "./transfer.js";

// Requests at a time. A browser opens six connections to a host, and the page needs some. Where a host gives each so many
// bytes a second, every one more is faster: python tests/bench/download.py measures it.
const LANES = 4;
const PAUSE_MS = 1000;

/** The text at `url`, asked for anew at each visit, and twice where that may help. Throws Fault download if it is not had. */
export async function fetchText(url) {
  for (let last = false; ; last = true) {
    let reason;
    let passes = true;
    try {
      const response = await fetch(url);
      if (response.ok) return await response.text();
      reason = `answered ${response.status}`;
      passes = isPassing(response.status);
    } catch (error) {
      reason = `could not be fetched (${error.message})`;
    }
    if (last || !passes) throw new Fault("download", `${url} ${reason}.`);
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

/** JSON at `url`. Throws Fault manifest for text that is not JSON, and what fetchText throws. */
export async function fetchJson(url) {
  const text = await fetchText(url);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Fault("manifest", `${url} is not JSON (${error.message}).`);
  }
}

/**
 * Have all of `files` ({entry, url, open, keep}, see transfer.js), told to `meter`. A corrupt file is fetched once more,
 * alone. When one cannot be had the others stop where they are, and its Fault (download, corrupt) or QuotaExceededError
 * is thrown.
 */
export async function download(files, meter) {
  const stop = new AbortController();
  const idle = []; // What wakes the lanes that found nothing to do.
  const changed = () => idle.splice(0).forEach((wake) => wake());
  const transfers = files.map((file) => new Transfer(file, { meter, stop: stop.signal, changed }));
  let failure = null;
  const lane = async () => {
    while (!failure && !transfers.every(({ done }) => done)) {
      const work = first(transfers);
      if (!work) {
        await new Promise((wake) => idle.push(wake));
        continue;
      }
      try {
        await work();
      } catch (error) {
        failure ??= error;
        stop.abort(error);
      }
      changed();
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  for (const transfer of transfers) transfer.close();
  if (failure) throw failure;
}

function first(transfers) {
  for (const transfer of transfers) {
    const work = transfer.claim();
    if (work) return work;
  }
  return null;
}

/** A part in memory. */
export class MemoryPart {
  constructor(bytes) {
    this.buffer = new Uint8Array(bytes);
    this.pieces = new Pieces(bytes);
  }

  write(bytes, at) {
    let added = 0;
    for (const { piece, from, to } of this.pieces.missing(at, bytes.length)) {
      this.buffer.set(bytes.subarray(from, to), at + from);
      this.pieces.filled[piece] += to - from;
      added += to - from;
    }
    return added;
  }

  read(view, at) {
    view.set(this.buffer.subarray(at, at + view.length));
    return view.length;
  }

  clear() {
    this.pieces.filled.fill(0);
  }

  close() {}
}
