"""Runs inside Pyodide, in build/snapshot.mjs: import all that the engine's worker uses, then tidy up.

It leaves /tmp/rest.zip: the standard library without the modules that are imported now, which nobody reads from the
archive again, and without those that have nothing to do in a page.
"""

import gc
import importlib
import pkgutil
import random
import shutil
import sys
import sysconfig
import zipfile
import zipimport

UNUSED = (
    "_pyrepl ctypes doctest email ftplib http imaplib mailbox multiprocessing pdb pickletools poplib pydoc "
    "smtplib tarfile unittest wsgiref xml xmlrpc"
)
"""For sockets, processes, terminals and tests: 700 kB that every visitor would load."""

sys.path.insert(0, "/handbill")
# engine.py's own, and those of PyScript's Python package, which starts after the snapshot is restored.
IMPORTS = (
    "asyncio base64 collections.abc dataclasses datetime hashlib html inspect io json pathlib platform re sys textwrap "
    "time traceback types typing urllib.parse encodings.unicode_escape "
    "pyodide.code pyodide.ffi pyodide.http pyodide.webloop browser"
)
for name in IMPORTS.split():
    importlib.import_module(name)
for package in ("handbill", "jinja2", "markupsafe"):  # Every module: their files are not there in the page.
    for module in pkgutil.iter_modules([f"/handbill/{package}"], f"{package}."):
        importlib.import_module(module.name)

version = sysconfig.get_python_version().replace(".", "")
archive = f"/lib/python{version}.zip"
loaded = {
    getattr(module, "__file__", None) or "" for module in sys.modules.values() if getattr(module, "__spec__", None)
}
unused = set(UNUSED.split())
with zipfile.ZipFile(archive) as whole, zipfile.ZipFile("/tmp/rest.zip", "w", zipfile.ZIP_DEFLATED, True, 9) as rest:
    for member in whole.infolist():
        top = member.filename.partition("/")[0].removesuffix(".py")
        if f"{archive}/{member.filename}" not in loaded and top not in unused:
            rest.writestr(member, whole.read(member), zipfile.ZIP_DEFLATED, 9)
shutil.copyfile("/tmp/rest.zip", archive)
importer = sys.path_importer_cache[archive]
assert isinstance(importer, zipimport.zipimporter)
importer.invalidate_caches()  # It keeps the archive's directory: from now on that of the smaller one.

random.seed(0)  # What is drawn in the browser comes from generators of its own (handbill.sampling).
del module, package, name, archive, loaded, unused, whole, rest, member, version, top, importer
gc.collect()
