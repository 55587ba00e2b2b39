#!/bin/sh
# Put this project into an environment that has its packages: sh deploy/image.sh PYTHON ENVIRONMENT COMPILED
#
# PYTHON has setuptools and mypy; ENVIRONMENT gets the program, compiled where COMPILED is "yes", bytecode
# that is never looked at again, and a list of its contents (sbom.json). A step of deploy/Dockerfile.
set -eu
python=$1 environment=$2 compiled=$3
packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

"$python" -m gateway.cli.admin.describing gateway/cli/admin/commands.json
"$python" -m pip wheel -q --no-index --no-deps --no-build-isolation --wheel-dir build/wheel .
"$python" -m pip --python "$environment/bin/python" install -q --no-compile --no-index --no-deps build/wheel/*.whl
echo image | tee "$packages"/tollkeeper_gateway-*.dist-info/INSTALLER >/dev/null
if [ "$compiled" = yes ]; then
    PYTHONPATH="$packages" "$python" deploy/compile.py build/compiled
    (cd build/compiled && find . -name '*.so' -exec cp --parents {} "$packages" \;)
fi
find "$packages" -name tests -type d -prune -exec rm -rf {} +
# Of pyarrow, where an extra brings it: without its headers and its RPC.
rm -rf "$packages"/pyarrow/include "$packages"/pyarrow/*flight*
find "$packages" -name '*.so*' -type f -exec strip --strip-unneeded {} +
rm -rf "$packages"/../../../include "$environment"/bin/[Aa]ctivate*
"$environment/bin/python" -m compileall -q -f --invalidation-mode unchecked-hash "$packages"
"$environment/bin/python" deploy/sbom.py >"$environment/sbom.json"
