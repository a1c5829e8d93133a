// What this browser and this site offer, gathered for choose.js; and what is remembered of a graphics chip that errs.

const KEPT = "handbill graphics.json";

/** The facts that choose() asks for; `site` is site.json's content. */
export async function gather(site) {
  const { quota, usage = 0 } = (await navigator.storage?.estimate?.().catch(() => null)) ?? {};
  return {
    adapter: await adapter(),
    jspi: typeof WebAssembly.Suspending === "function",
    isolated: self.crossOriginIsolated === true,
    cores: navigator.hardwareConcurrency || 1,
    memory: navigator.deviceMemory ? navigator.deviceMemory * 2 ** 30 : null,
    room: quota === undefined ? null : quota - usage,
    frugal: navigator.connection?.saveData === true,
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

/** Note that this adapter computes the graph of `sha256` wrongly, for as long as adapter and browser stay as they are. */
export async function remember(sha256) {
  const found = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!found) return;
  const known = await recall(describe(found.info));
  known.wrong = [...new Set([...known.wrong, sha256])];
  const root = await navigator.storage.getDirectory();
  const file = await (await root.getFileHandle(KEPT, { create: true })).createWritable();
  await file.write(JSON.stringify(known));
  await file.close();
}

/** {adapter, wrong} as kept; nothing is wrong yet if nothing is kept, or if it was about another adapter or browser. */
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
  return [vendor, architecture, device, description, navigator.userAgent].join(" | ");
}
