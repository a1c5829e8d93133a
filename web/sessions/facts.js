// What this browser and this site offer, gathered for choose.js; and what is remembered of a graphics chip that errs.

// A function of one SIMD instruction (v128.const), which every runtime here is full of.
const SIMD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 22, 1, 20, 0, 253, 12,
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11,
);

const KEPT = "handbill graphics.json";

const ORT = "1.30.0"; // web/package.json's: another one's kernels have to be judged anew.

/** The facts that choose() asks for; `site` is site.json's content. */
export async function gather(site) {
  const { quota } = (await navigator.storage?.estimate?.().catch(() => null)) ?? {};
  return {
    adapter: await adapter(),
    jspi: typeof WebAssembly.Suspending === "function",
    isolated: self.crossOriginIsolated === true,
    cores: navigator.hardwareConcurrency || 1,
    memory: navigator.deviceMemory ? navigator.deviceMemory * 2 ** 30 : null,
    room: quota ?? null, // Not less what is used: most of that is this site's models, one of which is asked about.
    frugal: navigator.connection?.saveData === true,
    simd: WebAssembly.validate(SIMD),
    int4: "sessions/cpu.js" in site.files,
  };
}

async function adapter() {
  // A browser without WebGPU lacks the property; one on a machine without a graphics chip gives null, or rejects.
  const found = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!found) return null;
  return {
    kind: found.info.isFallbackAdapter ? "software" : "hardware",
    largest: Math.min(found.limits.maxBufferSize, found.limits.maxStorageBufferBindingSize),
    wrong: (await recall(describe(found.info))).wrong,
  };
}

/** Note whether this adapter computes the graph of `sha256` rightly, for as long as adapter, browser and ORT stay as they are. */
export async function judge(sha256, right) {
  const found = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!found) return;
  const known = await recall(describe(found.info));
  if (known.wrong.includes(sha256) !== right) return;
  known.wrong = right ? known.wrong.filter((other) => other !== sha256) : [...known.wrong, sha256];
  const root = await navigator.storage.getDirectory();
  const file = await (await root.getFileHandle(KEPT, { create: true })).createWritable();
  await file.write(JSON.stringify(known));
  await file.close();
}

/** {adapter, wrong} as kept; nothing is wrong yet if nothing is kept, or if it was about another adapter, browser or ORT. */
async function recall(adapter) {
  try {
    const root = await navigator.storage.getDirectory();
    const text = await (await (await root.getFileHandle(KEPT)).getFile()).text();
    const known = JSON.parse(text);
    if (known.adapter === adapter && Array.isArray(known.wrong)) return known;
  } catch {
    // Not written yet, refused by a private mode, or damaged: the check after loading finds out again.
  }
  return { adapter, wrong: [] };
}

function describe({ vendor, architecture, device, description }) {
  return [vendor, architecture, device, description, navigator.userAgent, ORT].join(" | ");
}
