const PATIENCE_MS = 20_000;
const PAUSE_MS = 50;

/** What `open` gives, asked again for a while where somebody else has the file open (NoModificationAllowedError). */
export async function patiently(open) {
  for (const end = performance.now() + PATIENCE_MS; ; ) {
    try {
      return await open();
    } catch (error) {
      if (error.name !== "NoModificationAllowedError" || performance.now() > end) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}
