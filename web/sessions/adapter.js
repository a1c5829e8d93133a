// An adapter's file (exporter/branches.py): safetensors of float16, a length of eight bytes, a JSON header and the
// tensors behind it.

import { Fault } from "../fault.js";

export const A = ".lora_a";
export const B = ".lora_b";

/**
 * A function (name) → Promise of the tensors of `manifest`'s adapter: a Map of names and {shape: [rows, columns], values:
 * Float32Array}, empty for "". Each file is read once. Throws Fault manifest for a name there is not, and what
 * `files` (files.js) throws.
 */
export function adapterTensors(manifest, files) {
  const kept = new Map([["", Promise.resolve(new Map())]]);
  return (name) => {
    const entry = manifest.adapters?.find((each) => each.name === name);
    if (!entry && name) throw new Fault("manifest", `The model has no adapter ${name}.`);
    if (!kept.has(name)) {
      const tensors = files.read(entry.file).then((bytes) => readAdapter(bytes, name));
      tensors.catch(() => kept.delete(name)); // Another time it may be had.
      kept.set(name, tensors);
    }
    return kept.get(name);
  };
}

/**
 * What the branches of an ORT `session` are fed for `tensors`: [{name, dims, values: Float32Array}], zeros of rank 1 for
 * those that are not in them.
 */
export function branchFeeds(session, tensors) {
  const branches = session.inputMetadata.filter(({ name }) => name.endsWith(A) || name.endsWith(B));
  return branches.map(({ name, shape }) => {
    const tensor = tensors.get(name);
    const dims = tensor?.shape ?? shape.map((size) => (typeof size === "number" ? size : 1));
    return { name, dims, values: tensor?.values ?? new Float32Array(dims[0] * dims[1]) };
  });
}

function readAdapter(bytes, name) {
  const damaged = (what) => new Fault("manifest", `The adapter ${name} ${what}; export the model again.`);
  const length = bytes.length < 8 ? Infinity : Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  if (8 + length > bytes.length) throw damaged("is no safetensors file");
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  const tensors = new Map();
  for (const [key, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    const [rows, columns, ...more] = shape;
    if (dtype !== "F16" || more.length || to - from !== 2 * rows * columns) throw damaged(`holds ${key} as ${dtype}`);
    const part = bytes.subarray(8 + length + from, 8 + length + to);
    if (part.length !== to - from) throw damaged("is cut short");
    const halves = new Uint16Array(part.slice().buffer);
    if (halves.some((half) => (half & 0x7c00) === 0x7c00)) throw damaged(`holds no finite numbers in ${key}`);
    tensors.set(key, { shape, values: widened(halves) });
  }
  return tensors;
}

/** Finite IEEE halves as float32: the bits shifted into place, and one product that sets the exponent, subnormals included. */
function widened(halves) {
  const values = new Float32Array(halves.length);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < halves.length; i += 1) {
    bits[i] = (halves[i] & 0x7fff) << 13;
    values[i] *= 2 ** 112;
    bits[i] |= (halves[i] & 0x8000) << 16;
  }
  return values;
}
