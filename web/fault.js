/**
 * An error with one of the fault kinds of ARCHITECTURE.md's message table (manifest, download, corrupt, damaged, file,
 * storage, memory, device, too_long, template, start, internal). `message` says what happened and to which file; the page
 * chooses the words around it.
 */
export class Fault extends Error {
  constructor(fault, detail) {
    super(detail);
    this.name = "Fault";
    this.fault = fault;
  }
}

/** A device that runs and computes garbage. It is worth remembering: it will do so again. */
export class WrongOutput extends Fault {}

/**
 * Any thrown value as a Fault: what ran out (memory, quota) and what did not come of the page are known by the browsers'
 * own words.
 */
export function asFault(error) {
  if (error instanceof Fault) return error;
  const text = `${error?.name ?? ""} ${error?.message ?? error}`;
  if (/QuotaExceeded/i.test(text)) return new Fault("storage", text.trim());
  if (/out of memory|bad_alloc|allocation failed|memory access out of bounds.*grow|Cannot enlarge memory/i.test(text)) {
    return new Fault("memory", text.trim());
  }
  // Chromium and Firefox, "Load failed" and "Importing a module script failed" of Safari, and ORT of its WebAssembly.
  if (/failed to fetch|NetworkError|(load|import)ing .*module|TypeError:? Load failed|fetching of the wasm/i.test(text)) {
    return new Fault("start", text.trim());
  }
  if (/device.*lost|lost.*device|GPU(Device|Buffer|Queue)|webgpu/i.test(text)) return new Fault("device", text.trim());
  return new Fault("internal", text.trim());
}
