"""What is kept of the site's releases, counted while another tab or the service worker removes them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

WEB = Path(__file__).parents[1] / "web"

# A cache that lists two files of which the second one is gone by the time that it is asked for.
SCRIPT = """
const here = new URL("https://kiosk.example/");
const listed = ["models/a/manifest.json", "models/b/manifest.json"].map((path) => ({ url: here.href + path }));
const cache = {
  keys: async () => listed,
  match: async ({ url }) => (url.includes("/a/") ? new Response('{"name":"a"}') : undefined),
};
globalThis.self = globalThis;
globalThis.caches = { keys: async () => ["handbill / 1"], open: async () => cache };
const { manifestsIn, releaseBytes } = await import(process.argv[1]);
console.log(JSON.stringify([await releaseBytes(here), await manifestsIn(cache, here)]));
"""


def test_a_file_that_goes_while_it_is_counted() -> None:
    command = ["node", "--input-type=module", "-e", SCRIPT, "--", (WEB / "releases.js").as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == [12, [{"name": "a"}]]
