"""The chart, rendered and linted by Helm itself: valid objects that fit each other and keep to the rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import grimp
import kubernetes_validate
import pytest
import yaml

from deploy.monitoring import to_kubernetes
from gateway.feature import features
from gateway.features.record import Feature
from gateway.run.keeper import ENDING_S_MAX
from gateway.run.serving import LOADING_S_MAX, SETTLING_S_MAX
from gateway.settings import settings
from gateway.settings.settings import Settings
from tests.deploy import helm
from tests.deploy.manifests import (
    IMAGE_USER,
    Resource,
    container_user,
    containers,
    file_access,
    is_read_by,
    pod,
    seconds_of_pre_stop,
)
from tests.tree import ROOT

VERSIONS = ("1.29", kubernetes_validate.latest_version())
OPERATOR = "monitoring.coreos.com/v1"
MONITORING = helm.CHART.parents[1] / "monitoring"
OLD, NEW = (f"sha256:{digit * 64}" for digit in "ab")
FULL: dict[str, Any] = {
    "image": {"digest": OLD, "pullSecrets": [{"name": "registry"}]},
    "secrets": {
        "upstreams": "tollkeeper-upstreams", "migrate": "tollkeeper-migrate", "earlierPeppers": True,
        "files": "tollkeeper-files",
    },
    "tls": {"gateway": "llm-tls", "gatewayClients": True, "ops": "ops-tls", "admin": "admin-tls"},
    "keeper": {
        "keys": ["READONLY_TOKEN", "STRIPE_API_KEY"],
        "config": {
            "sign_in": {
                "console_url": "https://console.example",
                "providers": [{
                    "name": "staff", "issuer": "https://id.example", "client_id": "console",
                    "client_secret_file": "/run/files/staff",
                }],
            },
        },
    },
    "upstreamKeys": ["OPENAI_API_KEY"],
    "proxy": {"secret": "tollkeeper-proxy", "exempt": ".svc,10.0.0.0/8"},
    "settings": {"LOG_LEVEL": "debug", "WORKERS": 2, "WEBHOOK_PRIVATE_ADDRESSES": False},
    "config": {
        "upstreams": {
            "openai": {
                "base_url": "https://api.openai.com",
                "headers": {"authorization": "Bearer ${OPENAI_API_KEY}"},
            }
        }
    },
    "gateway": {
        "graceSeconds": 900, "podAnnotations": {"a": "b"}, "nodeSelector": {"pool": "edge"}, "agents": True,
        "tolerations": [{"key": "edge", "operator": "Exists"}], "service": {"annotations": {"c": "d"}},
    },
    "sidecar": {"settings": {"WORKERS": 3, "SPENT_STATUS": 402}},
    "ingress": {
        "enabled": True, "className": "nginx", "hosts": ["llm.example"], "annotations": {"e": "f"},
        "tls": [{"secretName": "llm-tls", "hosts": ["llm.example"]}],
    },
    "monitoring": {
        "enabled": True, "labels": {"release": "prometheus"},
        "tlsConfig": {"ca": {"secret": {"name": "ops-tls", "key": "ca.crt"}}, "serverName": "tollkeeper"},
        "sidecarNamespaces": ["shop"],
    },
    "backup": {"enabled": True, "image": "registry.example/backup", "claim": "backups", "keep": 30},
    "archive": {"enabled": True, "claim": "archive", "dropAfterDays": 7},
    "networkPolicy": {"identities": [{"cidr": "169.254.169.254/32", "port": 80}]},
}  # fmt: skip
MONITORS = (("PodMonitor", "prod-gateway"), ("PodMonitor", "prod-sidecar"), ("ServiceMonitor", "prod-keeper"))
BUCKET: dict[str, Any] = {
    "backup": {
        "enabled": True, "image": "registry.example/backup", "to": "s3://backups/toll?region=eu-central-1",
        "credentials": "backups", "serviceAccount": "backups", "prove": False,
    },
    "archive": {"enabled": True, "to": "s3://a/b", "credentials": "c", "serviceAccount": "d", "drop": False},
}  # fmt: skip
SMALL: dict[str, Any] = {
    "gateway": {"autoscaling": {"enabled": False}, "tag": "0.0.9"}, "migrate": {"enabled": False},
    "networkPolicy": {"enabled": False},
}  # fmt: skip
KEEPERS: dict[str, Any] = {"gateway": {"enabled": False}, "monitoring": {"enabled": True}}
REROUTED: dict[str, Any] = {
    **FULL,
    "config": {**FULL["config"], "include_default_routes": True, "routes": []},
}
CHANGED: dict[str, Any] = {
    "settings": {"LOG_LEVEL": "debug", "SETTLEMENT_LOG_BYTES_MAX": 1073741824, "LEASE_FRACTION": 0.05},
    "gateway": {"resources": {"limits": {"cpu": ""}}}, "keeper": {"resources": {"limits": {"cpu": ""}}},
}  # fmt: skip
SIDECAR = """
apiVersion: apps/v1
kind: Deployment
metadata: { name: llm }
spec:
  selector: { matchLabels: { app: llm } }
  template:
    metadata:
      labels:
        app: llm
        {{- include "tollkeeper.sidecar.labels" . | nindent 8 }}
    spec:
      terminationGracePeriodSeconds: {{ include "tollkeeper.sidecar.grace" . }}
      initContainers:
        {{- include "tollkeeper.sidecar" (dict "root" . "config" "llm-routes") | nindent 8 }}
      containers:
        - name: llm
          image: llm
      volumes:
        {{- include "tollkeeper.sidecar.volumes" (dict "root" . "config" "llm-routes") | nindent 8 }}
"""
NAMES = ("default", "full", "small", "keepers", "bucket")


@pytest.fixture(scope="module")
def charts() -> dict[str, list[Resource] | str]:
    """What Helm makes of each of the values."""
    values = [{}, FULL, SMALL, KEEPERS, BUCKET, CHANGED, REROUTED]
    names = [*NAMES, "changed", "rerouted"]
    return dict(zip(names, helm.rendered(*values, extra=SIDECAR), strict=True))


@pytest.fixture(params=NAMES)
def objects(charts: dict[str, list[Resource] | str], request: pytest.FixtureRequest) -> list[Resource]:
    return of(charts, request.param)


def of(charts: dict[str, list[Resource] | str], name: str) -> list[Resource]:
    found = charts[name]
    assert not isinstance(found, str), found
    return found


def one(objects: list[Resource], kind: str, name: str) -> Resource:
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pods(objects: list[Resource]) -> list[Resource]:
    return [pod(each) for each in objects if each["kind"] in {"Deployment", "Job", "CronJob"}]


def test_helm_lints_it_without_an_error() -> None:
    said = helm.lint()
    assert not said["Errors"]
    assert {each["Severity"] for each in said["Messages"]} <= {1}  # it has no icon


def test_the_validator_would_tell_of_an_unknown_field(charts: dict[str, list[Resource] | str]) -> None:
    wrong = dict(one(of(charts, "default"), "Service", "prod-keeper"))
    wrong["spec"] = wrong["spec"] | {"prots": []}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_kubernetes_accepts_each_object(objects: list[Resource]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    for each in objects:
        if each["apiVersion"] != OPERATOR:
            for version in VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)


def test_every_container_is_restricted_and_sees_secrets_as_files(objects: list[Resource]) -> None:
    assert pods(objects)
    for spec in pods(objects):
        theirs = any(each["image"] == "llm" for each in containers(spec))
        assert theirs or spec["automountServiceAccountToken"] is False
        for container in (each for each in containers(spec) if each["image"] != "llm"):
            # A pod of others says nothing for the sidecar.
            said = {} if theirs else spec["securityContext"]
            assert (said | container["securityContext"]).items() >= {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": True,
                "runAsUser": IMAGE_USER,
                "runAsGroup": IMAGE_USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            }.items()
            assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
            assert all("valueFrom" not in each for each in container.get("env", ()))
            assert all("secretRef" not in each for each in container.get("envFrom", ()))


@pytest.mark.parametrize("of_pod", [{}, {"runAsUser": 1000, "fsGroup": 2000}, {"runAsUser": 0}])
def test_the_user_of_a_container_reads_its_secrets(objects: list[Resource], of_pod: dict[str, int]) -> None:
    """Whatever a pod of others says of users and groups; the sidecar alone sees a volume of such files."""
    for spec in pods(objects):
        theirs = any(each["image"] == "llm" for each in containers(spec))
        told = spec | ({"securityContext": of_pod} if theirs else {})
        volumes = {each["name"]: each for each in told["volumes"] if "secret" in each or "projected" in each}
        for container in containers(told):
            user, group = container_user(told, container)
            seen = {each["name"] for each in container.get("volumeMounts", ())} & volumes.keys()
            assert bool(seen) is (container["image"] != "llm")
            for name in seen:
                access = file_access(told, volumes[name])
                assert is_read_by(user, {user, *({group} - {None})}, access), (container["name"], name)
                assert theirs or not access[1] & 0o007


def test_what_a_pod_refers_to_is_there(objects: list[Resource]) -> None:
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    for spec in pods(objects):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        paths = {
            f"/run/secrets/tollkeeper/{item['path']}"
            for source in volumes["secrets"]["projected"]["sources"] for item in source["secret"]["items"]
        }  # fmt: skip
        for container in (each for each in containers(spec) if each["image"] != "llm"):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
            named = {each["name"]: each["value"] for each in container["env"]}
            of_secrets = {path for path in named.values() if path.startswith("/run/secrets/")}
            assert of_secrets <= paths
            files = {path for name, path in named.items() if name.endswith("_FILE")} - of_secrets
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {path.rpartition("/")[0] for path in files} <= mounts
            assert all(each["configMapRef"]["name"] in maps for each in container.get("envFrom", ()))
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {})
                assert not asked or (asked.get("httpGet") or asked["tcpSocket"])["port"] in ports
    for name, data in maps.items():
        if name.endswith("-settings"):
            known = {setting.removeprefix("TOLLKEEPER_").lower() for setting in data}
            assert known <= set(settings.NAMES)


def test_each_port_speaks_tls_by_its_own_secret_and_is_probed_so(
    charts: dict[str, list[Resource] | str],
) -> None:
    """A port without a certificate is asked in plain HTTP; all pods have what is named by path."""
    names = {"gateway": "TLS", "ops": "OPS_TLS", "admin": "ADMIN_TLS"}
    for name, has in (("full", True), ("default", False)):
        for spec in pods(of(charts, name)):
            secrets = {
                each["name"]: each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each
            }
            for container in (each for each in containers(spec) if each["image"] != "llm"):
                command = container["args"][0]
                ports = {"serve": ("gateway", "ops"), "keeper": ("admin",)}.get(command, ())
                mounts = {one["mountPath"]: secrets.get(one["name"]) for one in container["volumeMounts"]}
                environ = {one["name"]: one["value"] for one in container["env"]}
                assert mounts.get("/run/files") == ("tollkeeper-files" if has else None)
                of_tls = {f"/run/tls/{port}": FULL["tls"][port] for port in ports if has}
                assert {path: of for path, of in mounts.items() if "/tls/" in path} == of_tls
                pairs = {
                    f"TOLLKEEPER_{names[port]}_{part}_FILE" for port in ports for part in ("CERT", "KEY")
                }
                clients = {"TOLLKEEPER_TLS_CLIENT_CA_FILE"} if command == "serve" else set()
                found = {each for each in environ if "_TLS_" in each}
                assert found == (pairs | clients if has else set())
                for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                    asked = container.get(probe, {}).get("httpGet")
                    assert not asked or asked.get("scheme") == ("HTTPS" if has else None)
    for monitor in (one(of(charts, "full"), *each) for each in MONITORS):
        ends = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        assert (ends[0]["scheme"], ends[0]["tlsConfig"]) == ("https", FULL["monitoring"]["tlsConfig"])
    for monitor in (each for each in of(charts, "keepers") if each["kind"] == "ServiceMonitor"):
        assert "scheme" not in monitor["spec"]["endpoints"][0]


def test_a_keeper_has_the_secrets_that_are_named_and_its_own_configuration(
    charts: dict[str, list[Resource] | str], tmp_path: Path
) -> None:
    keeper = pod(one(of(charts, "full"), "Deployment", "prod-keeper"))
    (container,) = keeper["containers"]
    assert container["args"] == ["keeper", "--config", "/etc/tollkeeper/config.yaml"]
    environ = {one["name"]: one["value"] for one in container["env"]}
    for setting, key in (("READONLY_TOKEN", "readonly-token"), ("STRIPE_API_KEY", "stripe-api-key")):
        assert environ[f"TOLLKEEPER_{setting}_FILE"] == f"/run/secrets/tollkeeper/{key}"
    (configuration,) = (each for each in keeper["volumes"] if each["name"] == "configuration")
    data = one(of(charts, "full"), "ConfigMap", configuration["configMap"]["name"])["data"]
    (tmp_path / "config.yaml").write_text(data["config.yaml"])
    assert settings.load({}, tmp_path / "config.yaml").sign_in.providers[0].name == "staff"
    (plain,) = pod(one(of(charts, "default"), "Deployment", "prod-keeper"))["containers"]
    assert plain["args"] == ["keeper"]


def test_each_secret_has_a_file_and_no_secret_is_a_plain_value() -> None:
    """Of a Secret of the gateways, of the keepers, of the migration, or one of `keeper.keys`."""
    schema = json.loads((helm.CHART / "values.schema.json").read_text())["properties"]
    defaults = json.loads((helm.CHART / "files" / "settings.json").read_text())
    assert {name.lower() for name, value in defaults.items() if value is None} == settings.SECRETS
    named = "".join(path.read_text() for path in (helm.CHART / "templates").iterdir())
    given = set(re.findall(r'"TOLLKEEPER_([A-Z_]+)" "key"', named))
    given |= set(schema["keeper"]["properties"]["keys"]["items"]["enum"])
    assert {each.upper() for each in settings.SECRETS} == given


def test_labels_lead_to_pods(objects: list[Resource]) -> None:
    labels = [
        each["spec"].get("jobTemplate", each)["spec"]["template"]["metadata"]["labels"].items()
        for each in objects if each["kind"] in {"Deployment", "Job", "CronJob"}
    ]  # fmt: skip
    for each in objects:
        spec = each.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        wanted = selector.get("matchLabels", selector)
        if each["kind"] in {"Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"}:
            assert sum(wanted.items() <= found for found in labels) == 1, each["metadata"]["name"]


def test_a_pod_has_the_time_its_calls_have_to_end(charts: dict[str, list[Resource] | str]) -> None:
    for name in ("default", "full"):
        for resource in ("prod-gateway", "llm"):
            spec = pod(one(of(charts, name), "Deployment", resource))
            (gateway,) = (each for each in containers(spec) if each.get("args", [""])[0] == "serve")
            environ = {each["name"]: each["value"] for each in gateway["env"]}
            grace_s = float(environ["TOLLKEEPER_SHUTDOWN_GRACE_S"])
            needed_s = seconds_of_pre_stop(gateway) + grace_s + SETTLING_S_MAX
            assert spec["terminationGracePeriodSeconds"] > needed_s


def test_a_keeper_has_the_time_that_it_takes_itself(charts: dict[str, list[Resource] | str]) -> None:
    spec = pod(one(of(charts, "default"), "Deployment", "prod-keeper"))
    (keeper,) = spec["containers"]
    environ = {each["name"]: each["value"] for each in keeper["env"]}
    grace_s = float(environ["TOLLKEEPER_SHUTDOWN_GRACE_S"])
    assert spec["terminationGracePeriodSeconds"] > seconds_of_pre_stop(keeper) + grace_s + ENDING_S_MAX


def test_a_probe_allows_a_start_and_a_pause(charts: dict[str, list[Resource] | str]) -> None:
    """A program that loads is not killed, nor one that the liveness probe finds busy twice."""
    for spec in pods(of(charts, "default")):
        for container in (each for each in containers(spec) if "livenessProbe" in each):
            starts, lives = container["startupProbe"], container["livenessProbe"]
            assert starts["periodSeconds"] * starts["failureThreshold"] > LOADING_S_MAX
            assert lives["failureThreshold"] > 2
            assert lives["timeoutSeconds"] >= container["readinessProbe"].get("timeoutSeconds", 1)


def test_no_start_hangs_on_redis(charts: dict[str, list[Resource] | str]) -> None:
    """A start-up probe that needs it would have pods killed while it is away, and applications with them."""
    gateway = containers(pod(one(of(charts, "default"), "Deployment", "prod-gateway")))[0]
    sidecar = containers(pod(one(of(charts, "default"), "Deployment", "llm")))[0]
    assert sidecar["restartPolicy"] == "Always"
    waits = []
    for each in (gateway, sidecar):
        assert each["startupProbe"]["httpGet"]["path"] == each["livenessProbe"]["httpGet"]["path"] == "/livez"
        waits += [one["value"] for one in each["env"] if one["name"] == "TOLLKEEPER_START_WAIT_S"]
    # Calls are finished while the application still runs.
    assert sidecar["lifecycle"]["preStop"]["exec"]["command"][-1].endswith("kill -TERM 1")
    assert float(waits[0]) > 600 > float(waits[1])  # a roll-out waits, an application does not


def test_the_migration_runs_before_and_again(charts: dict[str, list[Resource] | str]) -> None:
    objects = of(charts, "full")
    for kind in ("Job", "NetworkPolicy"):
        notes = one(objects, kind, "prod-migrate")["metadata"]["annotations"]
        assert notes["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation"
    spec = pod(one(objects, "Job", "prod-migrate"))
    assert "serviceAccountName" not in spec  # the hook is there before it
    environ = {each["name"] for each in spec["containers"][0]["env"]}
    assert environ == {"TOLLKEEPER_DATABASE_URL_FILE", "TOLLKEEPER_DATABASE_OWNER_URL_FILE"}
    assert "envFrom" not in spec["containers"][0]  # nor is the ConfigMap


def test_only_keepers_and_the_migration_know_the_database(charts: dict[str, list[Resource] | str]) -> None:
    for spec in pods(of(charts, "full")):
        known = {each["name"] for container in containers(spec) for each in container.get("env", ())}
        serving = "serve" in {container.get("args", [""])[0] for container in containers(spec)}
        assert ("TOLLKEEPER_DATABASE_URL_FILE" in known) is not serving
        assert not (serving and "TOLLKEEPER_ADMIN_TOKEN_FILE" in known)


def test_an_earlier_pepper_is_with_whoever_has_the_pepper(charts: dict[str, list[Resource] | str]) -> None:
    for name, taken in (("full", True), ("default", False)):
        for spec in pods(of(charts, name)):
            for container in containers(spec):
                named = {each["name"] for each in container.get("env", ())}
                has = "TOLLKEEPER_KEY_PEPPER_FILE" in named
                assert ("TOLLKEEPER_EARLIER_KEY_PEPPERS_FILE" in named) is (taken and has)


def test_who_calls_others_has_the_proxy_and_those_it_is_not_for(
    charts: dict[str, list[Resource] | str],
) -> None:
    """Gateways, the sidecar and keepers; no job calls anybody."""
    for name, wanted in (("full", True), ("default", False)):
        for spec in pods(of(charts, name)):
            for container in containers(spec):
                environ = {one["name"]: one["value"] for one in container.get("env", ())}
                calls = wanted and "TOLLKEEPER_REDIS_URL_FILE" in environ
                assert ("HTTPS_PROXY_FILE" in environ) is calls
                assert environ.get("NO_PROXY") == (FULL["proxy"]["exempt"] if calls else None)


def test_backups_are_proven_by_whoever_owns_the_database(charts: dict[str, list[Resource] | str]) -> None:
    job = one(of(charts, "full"), "CronJob", "prod-backup")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    (container,) = pod(job)["containers"]
    assert container["args"] == ["backup", "--to", "/backups", "--keep", "30", "--prove"]
    assert job["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0  # each try would write one more
    environ = {each["name"] for each in container["env"]}
    assert environ == {"TOLLKEEPER_DATABASE_URL_FILE", "TOLLKEEPER_DATABASE_OWNER_URL_FILE"}
    rules = one(of(charts, "full"), "NetworkPolicy", "prod-backup")["spec"]["egress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == {53, 5432, 6432}
    assert not any(each["kind"] == "CronJob" for each in of(charts, "default"))


@pytest.mark.parametrize(("part", "options"), [("backup", ["--keep", "14"]), ("archive", [])])
def test_backups_and_archives_go_to_a_bucket_and_to_no_volume(
    charts: dict[str, list[Resource] | str], part: str, options: list[str]
) -> None:
    job, said = one(of(charts, "bucket"), "CronJob", f"prod-{part}"), BUCKET[part]
    assert pod(job)["serviceAccountName"] == said["serviceAccount"]
    assert {each["name"] for each in pod(job)["volumes"]} == {"secrets", "tmp"}
    (container,) = pod(job)["containers"]
    assert container["args"] == [part, "--to", said["to"], *options]
    (file,) = (each["value"] for each in container["env"] if each["name"] == "AWS_SHARED_CREDENTIALS_FILE")
    (secrets,) = (each for each in pod(job)["volumes"] if each["name"] == "secrets")
    keys = {item["path"] for each in secrets["projected"]["sources"] for item in each["secret"]["items"]}
    assert file.rpartition("/")[2] in keys
    rules = one(of(charts, "bucket"), "NetworkPolicy", f"prod-{part}")["spec"]["egress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == {53, 5432, 6432, 443}


def test_archives_are_written_by_whoever_owns_the_database(charts: dict[str, list[Resource] | str]) -> None:
    objects = of(charts, "full")
    (container,) = pod(one(objects, "CronJob", "prod-archive"))["containers"]
    (keeper,) = pod(one(objects, "Deployment", "prod-keeper"))["containers"]
    # The program and the settings are those of keepers, which say how long each ledger is kept.
    assert (container["image"], container["envFrom"]) == (keeper["image"], keeper["envFrom"])
    assert container["args"] == ["archive", "--to", "/archive", "--drop-after", "7"]
    environ = {each["name"] for each in container["env"]}
    assert environ == {"TOLLKEEPER_DATABASE_URL_FILE", "TOLLKEEPER_DATABASE_OWNER_URL_FILE"}
    assert "/archive" in {each["mountPath"] for each in container["volumeMounts"]}


def test_policies_let_clients_the_collector_and_pgbouncer_through(
    charts: dict[str, list[Resource] | str],
) -> None:
    objects = of(charts, "default")

    def out(name: str) -> set[int]:
        rules = one(objects, "NetworkPolicy", name)["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert out("prod-gateway") == {53, 6379, 26379, 443, 4317, 4318}
    assert out("prod-keeper") == {53, 6379, 26379, 5432, 6432, 443, 465, 587}
    assert out("prod-migrate") == {53, 5432, 6432}
    clients, monitoring = one(objects, "NetworkPolicy", "prod-gateway")["spec"]["ingress"]
    assert clients == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": "http"}]}
    assert monitoring["ports"] == [{"protocol": "TCP", "port": "ops"}]
    assert not any(each["kind"] == "NetworkPolicy" for each in of(charts, "small"))


def test_a_changed_setting_rolls_the_pods_and_nothing_else_does(
    charts: dict[str, list[Resource] | str],
) -> None:
    def sums(name: str, deployment: str) -> str:
        found = one(of(charts, name), "Deployment", deployment)["spec"]["template"]["metadata"]["annotations"]
        return str(found["checksum/settings"])

    for deployment in ("prod-gateway", "prod-keeper"):
        assert sums("default", deployment) != sums("changed", deployment)
        assert sums("default", deployment) == sums("small", deployment)
    # Routes are in force without a roll-out; what the file says in `settings` may need one.
    before, after = (
        one(of(charts, name), "ConfigMap", "prod-routes")["data"] for name in ("full", "rerouted")
    )
    assert before != after
    assert sums("full", "prod-gateway") == sums("rerouted", "prod-gateway")


def test_gateways_scale_and_none_goes_before_another_has_come(
    charts: dict[str, list[Resource] | str],
) -> None:
    objects = of(charts, "default")
    autoscaler = one(objects, "HorizontalPodAutoscaler", "prod-gateway")["spec"]
    deployment = one(objects, "Deployment", "prod-gateway")
    assert autoscaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert autoscaler["minReplicas"] >= 3
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert pod(deployment)["topologySpreadConstraints"]
    assert one(objects, "Deployment", "prod-keeper")["spec"]["replicas"] == 2
    assert one(of(charts, "small"), "Deployment", "prod-gateway")["spec"]["replicas"] == 3


def test_images_go_by_digest_or_by_the_version_of_the_chart(charts: dict[str, list[Resource] | str]) -> None:
    def image(name: str, deployment: str) -> str:
        return str(containers(pod(one(of(charts, name), "Deployment", deployment)))[0]["image"])

    version = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())["appVersion"]
    assert image("default", "prod-gateway") == f"registry.example/tollkeeper:{version}"
    assert image("full", "prod-keeper") == image("full", "llm") == f"registry.example/tollkeeper@{OLD}"
    assert image("small", "prod-gateway").endswith(":0.0.9")
    assert image("small", "prod-keeper").endswith(f":{version}")


def test_upgrade_commands_of_the_page_replace_keepers_before_gateways() -> None:
    """By tag, and by digest, with the values that the page shows; a sidecar may stay as gateways do."""
    page = (ROOT / "docs/howto/kubernetes.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("helm upgrade") and "--set" in line]
    values: list[dict[str, Any]] = []
    for command in commands:
        asked: dict[str, Any] = {"image": {"digest": OLD}} if "digest" in command else {}
        for part, name, value in re.findall(r"--set (\w+)\.(\w+)=(\S+)", command):
            asked.setdefault(part, {})[name] = value.replace("sha256:NEW", NEW).replace("sha256:OLD", OLD)
        asked["sidecar"] = asked.get("gateway", {})
        values.append(asked)
    ran = []
    for objects in helm.rendered(*values, extra=SIDECAR):
        assert not isinstance(objects, str), objects
        made = {
            each["metadata"]["name"]: pod(each) for each in objects if each["kind"] in {"Deployment", "Job"}
        }
        found = {
            name: containers(spec)[0]["image"].partition("/tollkeeper")[2] for name, spec in made.items()
        }
        assert (found["prod-migrate"], found["llm"]) == (found["prod-keeper"], found["prod-gateway"])
        ran.append((found["prod-keeper"], found["prod-gateway"]))
    by_tag = [(":1.1.0", ":1.0.0"), (":1.1.0", ":1.1.0")]
    assert ran == [*by_tag, (f"@{NEW}", f"@{OLD}"), (f"@{NEW}", f"@{NEW}")]


# Which parts a release has, beside a sidecar.
WAYS: dict[str, dict[str, Any]] = {
    "gateways and keepers": {}, "gateways": {"keeper": {"enabled": False}},
    "keepers": {"gateway": {"enabled": False}},
    "neither": {"gateway": {"enabled": False}, "keeper": {"enabled": False}},
}  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    name: rule
    for name, rule in json.loads((helm.CHART / "files" / "settings.json").read_text()).items()
    if rule
}
# Settings that the chart gives itself.
OF_CHART = re.compile(
    r"(GATEWAY|OPS|ADMIN)_(HOST|PORT)|(DATA|SETTLEMENT_LOG)_DIR|SHUTDOWN_GRACE_S|START_WAIT_S"
    r"|(ADMIN_|OPS_)?TLS_(CERT|KEY)_FILE|TLS_CLIENT_CA_FILE"
)
TEXTS = {"a file": "/run/files/x", "URL": "https://x.example", "3166": "DE", "4217": "PLN", "days": "7,14"}


def another_value(rule: dict[str, Any]) -> str:
    """Return a value that a setting may have, and has not by default."""
    default, right = rule["default"], rule.get("right", "")
    if choices := re.fullmatch(r"\^\(([\w|]+)\)\$", rule.get("pattern", "")):
        return next(each for each in choices[1].split("|") if each != str(default).lower())
    if "most" in rule:
        below = default == rule["most"]
        return str(
            default + (-1 if below else 1) if isinstance(default, int) else (default + rule["most"]) / 2
        )
    return next((text for word, text in TEXTS.items() if word in right), "a")


@pytest.fixture(scope="module")
def with_settings() -> dict[str, list[Resource] | str]:
    """What Helm makes of each way, where values have all settings."""
    given = {name: another_value(rule) for name, rule in RULES.items() if not OF_CHART.fullmatch(name)}
    of_all = {"settings": given, "secrets": {"files": "files"}}
    return dict(
        zip(WAYS, helm.rendered(*(way | of_all for way in WAYS.values()), extra=SIDECAR), strict=True)
    )


@pytest.mark.parametrize("way", WAYS)
def test_each_setting_is_with_each_program_in_every_way_of_deployment(
    with_settings: dict[str, list[Resource] | str], way: str
) -> None:
    """A sidecar has those that `serve` reads, and as many workers as it says itself."""
    objects = of(with_settings, way)
    given = {name: another_value(rule) for name, rule in RULES.items() if not OF_CHART.fullmatch(name)}
    read = {name: value for name, value in given.items() if "keepers" not in RULES[name]}
    assert len(given) > 100
    assert len(read) > 60
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    expected = {"tollkeeper": read | {"WORKERS": "1"}, "gateway": given, "keeper": given}
    found = set()
    for spec in pods(objects):
        for container in containers(spec):
            if {"serve", "keeper"} & set(container.get("args", ())):
                variables: dict[str, str] = {}
                for source in container.get("envFrom", ()):
                    variables |= maps[source["configMapRef"]["name"]]
                variables |= {each["name"]: each["value"] for each in container["env"]}
                plain = {name.removeprefix("TOLLKEEPER_"): value for name, value in variables.items()}
                assert {name: plain[name] for name in given if name in plain} == expected[container["name"]]
                found.add(container["name"])
    assert found == {"tollkeeper", *(part for part in ("gateway", "keeper") if part not in WAYS[way])}


def test_no_module_of_gateways_names_a_setting_that_a_sidecar_lacks() -> None:
    graph = grimp.build_graph("gateway", cache_dir=None)
    modules = {"gateway.app", "gateway.run.serving"}
    modules |= {found for module in sorted(modules) for found in graph.find_upstream_modules(module)}
    usual = Feature(name="of nothing")
    for feature in features():
        if any(getattr(feature, part) != getattr(usual, part) for part in ("ports", "answers", "handlers")):
            modules |= graph.find_descendants(f"gateway.features.{feature.name}")
    lacking = [name.lower() for name, rule in RULES.items() if "keepers" in rule]
    named = re.compile(rf"""(?:\.|["'])({"|".join(lacking)})\b""")
    texts = {module: ROOT / f"{module.replace('.', '/')}.py" for module in modules}
    read = {
        (module, name) for module, path in texts.items()
        if path.exists() and not module.startswith("gateway.settings") for name in named.findall(path.read_text())
    }  # fmt: skip
    assert len(modules) > 200
    assert read == set()


def test_setting_of_a_sidecar_goes_before_that_of_all(charts: dict[str, list[Resource] | str]) -> None:
    sidecar = containers(pod(one(of(charts, "full"), "Deployment", "llm")))[0]
    environ = {each["name"]: each["value"] for each in sidecar["env"]}
    assert environ["TOLLKEEPER_SPENT_STATUS"] == "402"
    assert (environ["TOLLKEEPER_WORKERS"], environ["TOLLKEEPER_LOG_LEVEL"]) == ("3", "debug")
    assert sidecar["resources"]["requests"]["memory"] == "288Mi"  # 3 x 96
    # What sums go by is said, so that the file of a sidecar, which the chart does not see, changes none.
    assert environ["TOLLKEEPER_CACHE_BYTES_MAX"] == str(Settings().cache_bytes_max)


def test_sidecar_mounts_files_that_settings_name() -> None:
    """Those of keepers are not with a sidecar, wherever they are."""
    settings = {
        "REDIS_CA_FILE": "/run/files/ca", "OPS_TLS_CLIENT_CA_FILE": "/run/tls/ops/ca.crt",
        "LEDGER_KEY_FILE": "/opt/ledger.pem", "PROXY_CA_FILE": "",
    }  # fmt: skip
    of_files = {"settings": settings, "secrets": {"files": "files"}, "tls": {"ops": "ops-tls"}}
    (objects,) = helm.rendered(of_files, extra=SIDECAR)
    assert not isinstance(objects, str), objects
    sidecar = containers(pod(one(objects, "Deployment", "llm")))[0]
    assert "TOLLKEEPER_LEDGER_KEY_FILE" not in {each["name"] for each in sidecar["env"]}


def test_quantity_that_is_empty_is_no_limit(charts: dict[str, list[Resource] | str]) -> None:
    for part in ("gateway", "keeper"):
        (container,) = pod(one(of(charts, "changed"), "Deployment", f"prod-{part}"))["containers"]
        assert set(container["resources"]["limits"]) == {"memory"}
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}


def test_notes_warn_of_more_workers_than_cores() -> None:
    notes = '{kind: Notes, text: {{ include (print $.Template.BasePath "/NOTES.txt") . | quote }}}'
    four = {"WORKERS": 4}
    cases = {
        "settings.WORKERS is 4": {"settings": four},
        "sidecar.settings.WORKERS is 4": {"sidecar": {"settings": four}},
    }
    plain, *warned = helm.rendered({}, *cases.values(), extra=notes)
    assert [each["text"].strip() for each in plain if isinstance(each, dict) and each["kind"] == "Notes"] == [
        ""
    ]
    for said, objects in zip(cases, warned, strict=True):
        (text,) = (each["text"] for each in objects if isinstance(each, dict) and each["kind"] == "Notes")
        assert f"WARNING: {said}, and" in text


def test_the_routes_it_carries_are_a_valid_configuration(
    charts: dict[str, list[Resource] | str], tmp_path: Any
) -> None:
    data = one(of(charts, "full"), "ConfigMap", "prod-routes")["data"]
    (tmp_path / "config.yaml").write_text(data["config.yaml"])
    read = settings.load({"OPENAI_API_KEY": "sk-of-a-test"}, tmp_path / "config.yaml")
    assert [target.name for target in read.upstreams if target.headers] == ["openai"]


def test_monitors_name_the_jobs_and_rules_are_those_of_prometheus(
    charts: dict[str, list[Resource] | str],
) -> None:
    objects = of(charts, "full")
    for target in to_kubernetes.TARGETS:
        assert (helm.CHART / "files" / target).read_text() == to_kubernetes.groups(target), (
            "run python deploy/monitoring/to_kubernetes.py"
        )
    rule = one(objects, "PrometheusRule", "prod-rules")
    files = [MONITORING / "rules" / f"{name}.yml" for name in ("recording", "alerts", "gateways", "keepers")]
    assert rule["spec"]["groups"] == [
        group for file in files for group in yaml.safe_load(file.read_text())["groups"]
    ]
    (alone,) = (each for each in of(charts, "keepers") if each["kind"] == "PrometheusRule")
    groups = {group["name"] for group in alone["spec"]["groups"]}
    assert "tollkeeper-keepers" in groups
    assert "tollkeeper-gateways" not in groups, "a chart without gateways misses none"
    for kind, name, job in (
        ("PodMonitor", "prod-gateway", "tollkeeper-gateway"),
        ("PodMonitor", "prod-sidecar", "tollkeeper-gateway"),
        ("ServiceMonitor", "prod-keeper", "tollkeeper-keeper"),
    ):
        monitor = one(objects, kind, name)
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        ends = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        assert ends[0]["relabelings"] == [{"targetLabel": "job", "replacement": job}]


def test_sidecars_are_scraped_wherever_they_are_also_without_gateways(
    charts: dict[str, list[Resource] | str],
) -> None:
    for name, namespaces in (("full", {"matchNames": ["shop"]}), ("keepers", None)):
        monitor = one(of(charts, name), "PodMonitor", "prod-sidecar")["spec"]
        assert monitor.get("namespaceSelector") == namespaces
        (port,) = (end["port"] for end in monitor["podMetricsEndpoints"])
        sidecar = containers(pod(one(of(charts, name), "Deployment", "llm")))[0]
        assert port in {each["name"] for each in sidecar["ports"]}


def test_agents_have_a_way_from_gateways_to_keepers_and_nobody_else_has(
    charts: dict[str, list[Resource] | str],
) -> None:
    objects = of(charts, "full")
    gateway, keeper = (
        one(objects, "NetworkPolicy", f"prod-{part}")["spec"] for part in ("gateway", "keeper")
    )
    out, (come,) = gateway["egress"][-1], keeper["ingress"][1:]
    assert out == {
        "to": [{"podSelector": keeper["podSelector"]}],
        "ports": [{"protocol": "TCP", "port": "admin"}],
    }
    assert come == {"from": [{"podSelector": gateway["podSelector"]}], "ports": out["ports"]}
    serving, keeping = (
        {
            each["name"]: each["value"]
            for each in pod(one(objects, "Deployment", f"prod-{part}"))["containers"][0]["env"]
        }
        for part in ("gateway", "keeper")
    )
    service = one(objects, "Service", "prod-keeper")["metadata"]
    assert (
        serving["TOLLKEEPER_AGENTS_KEEPER_URL"]
        == f"https://{service['name']}.{service['namespace']}.svc:8081"
    )
    assert keeping["TOLLKEEPER_AGENTS"] == "true"
    assert len(one(of(charts, "default"), "NetworkPolicy", "prod-keeper")["spec"]["ingress"]) == 1


def test_the_address_of_an_identity_is_reached_by_those_who_have_one(
    charts: dict[str, list[Resource] | str],
) -> None:
    rule = {
        "to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"protocol": "TCP", "port": 80}],
    }  # fmt: skip
    reach = {
        each["metadata"]["name"] for each in of(charts, "full")
        if each["kind"] == "NetworkPolicy" and rule in each["spec"]["egress"]
    }  # fmt: skip
    assert reach == {"prod-gateway"}  # backups and archives go to a volume


def test_the_settlement_logs_of_all_workers_fit(charts: dict[str, list[Resource] | str]) -> None:
    """By the settings' own defaults, where values say nothing; of a sidecar by its own."""
    for name, deployment, workers in (
        ("default", "prod-gateway", 1), ("default", "llm", 1), ("full", "prod-gateway", 2), ("full", "llm", 3),
    ):  # fmt: skip
        volumes = pod(one(of(charts, name), "Deployment", deployment))["volumes"]
        (size,) = (each["emptyDir"]["sizeLimit"] for each in volumes if each["name"] == "data")
        assert int(size) == (workers + 1) * Settings().settlement_log_bytes_max


def test_numbers_are_written_out(charts: dict[str, list[Resource] | str]) -> None:
    """Helm's own text of a number above a million is `1e+06`, which no setting takes."""
    data = one(of(charts, "changed"), "ConfigMap", "prod-settings")["data"]
    assert data["TOLLKEEPER_SETTLEMENT_LOG_BYTES_MAX"] == "1073741824"
    assert data["TOLLKEEPER_LEASE_FRACTION"] == "0.05"
