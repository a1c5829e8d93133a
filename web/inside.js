// A model's files where the page is one file (web/single/), as files.js has them.

import { Fault } from "./fault.js";
import { cutShort } from "./files.js";
import { sha256 } from "./sha256.js";

/** Files that came inside the page itself (web/single/), each read once, from its first byte to its last, and let go. */
export class InsideFiles {
  constructor(manifest) {
    this.folder = `models/${manifest.slug}`;
    this.wanted = new Map(manifest.files.map((entry) => [entry.name, entry.sha256]));
  }

  async has(name) {
    return this.wanted.has(name); // Nothing else can be had.
  }

  letGo() {} // Each goes as it is read.

  async read(name) {
    const opened = await this.open(name);
    const bytes = new Uint8Array(opened.size);
    opened.read(bytes, 0);
    opened.close();
    return bytes;
  }

  async open(name) {
    const path = `${this.folder}/${name}`;
    const chunks = await self.handbillFiles.chunks(path);
    const each = chunks[0].length;
    const opened = joined(name, chunks);
    if ((await sha256(opened)) !== this.wanted.get(name)) throw new Fault("file", name);
    return {
      ...opened,
      read(view, at) {
        opened.read(view, at);
        self.handbillFiles.drop(path, Math.floor(at / each)); // The model grows in this worker's memory meanwhile.
      },
      close: () => self.handbillFiles.drop(path),
    };
  }
}

/** The file `name` that consists of `chunks`, all but the last of one length, as open() gives it. */
function joined(name, chunks) {
  const each = chunks[0].length;
  const size = each * (chunks.length - 1) + chunks.at(-1).length;
  return {
    size,
    read(view, at) {
      if (at + view.byteLength > size) throw cutShort(name, size);
      const target = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      for (let done = 0; done < target.length; ) {
        const chunk = chunks[Math.floor((at + done) / each)];
        const from = (at + done) % each;
        const part = chunk.subarray(from, from + target.length - done);
        target.set(part, done);
        done += part.length;
      }
    },
    close() {},
  };
}
