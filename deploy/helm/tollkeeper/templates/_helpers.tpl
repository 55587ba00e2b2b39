{{- define "tollkeeper.labels" -}}
app.kubernetes.io/name: tollkeeper
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "tollkeeper.metadata" -}}
name: {{ printf "%s-%s" .root.Release.Name .component | trunc 63 | trimSuffix "-" }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "tollkeeper.labels" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* What a part runs: its own digest or tag, else that of `image`. */}}
{{- define "tollkeeper.image" -}}
{{- $image := .root.Values.image -}}
{{- $said := or .of.digest .of.tag | empty | ternary $image .of -}}
{{- if $said.digest -}}
{{ $image.repository }}@{{ $said.digest }}
{{- else -}}
{{ $image.repository }}:{{ $said.tag | default .root.Chart.AppVersion }}
{{- end }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{- define "tollkeeper.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tollkeeper.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* A setting whose value is a file of a Secret: its name, and the key. */}}
{{- define "tollkeeper.fromFile" -}}
- name: {{ .name }}_FILE
  value: /run/secrets/tollkeeper/{{ .key }}
{{- end }}

{{/* The volume of such files: Secrets by name, and of each the keys. */}}
{{- define "tollkeeper.secretsVolume" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range . }}
      - secret:
          name: {{ .name }}
          {{- with .optional }}
          optional: true
          {{- end }}
          items:
            {{- range .keys }}
            - { key: {{ . }}, path: {{ . }} }
            {{- end }}
      {{- end }}
{{- end }}

{{/* The proxy that others are reached through: its variables, and where its URL is. */}}
{{- define "tollkeeper.proxyEnv" -}}
{{ include "tollkeeper.fromFile" (dict "name" "HTTPS_PROXY" "key" "https-proxy") }}
- { name: NO_PROXY, value: {{ .Values.proxy.exempt | quote }} }
{{- end }}

{{/* What a port speaks TLS with: its name in settings, and the Secret mounted for it. */}}
{{- define "tollkeeper.tlsEnv" -}}
- { name: TOLLKEEPER_{{ .name }}_CERT_FILE, value: /run/tls/{{ .port }}/tls.crt }
- { name: TOLLKEEPER_{{ .name }}_KEY_FILE, value: /run/tls/{{ .port }}/tls.key }
{{- if .clients }}
- { name: TOLLKEEPER_{{ .name }}_CLIENT_CA_FILE, value: /run/tls/{{ .port }}/ca.crt }
{{- end }}
{{- end }}

{{/* Mounts and volumes of such files, for the ports that have a certificate, and of files that are named by path. */}}
{{- define "tollkeeper.fileMounts" -}}
{{- $root := .root -}}
{{- range .ports }}
{{- if index $root.Values.tls . }}
- { name: tls-{{ . }}, mountPath: /run/tls/{{ . }}, readOnly: true }
{{- end }}
{{- end }}
{{- if $root.Values.secrets.files }}
- { name: files, mountPath: /run/files, readOnly: true }
{{- end }}
{{- end }}

{{- define "tollkeeper.fileVolumes" -}}
{{- $root := .root -}}
{{- range $port := .ports }}
{{- with index $root.Values.tls $port }}
- name: tls-{{ $port }}
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- end }}
{{- with $root.Values.secrets.files }}
- name: files
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- end }}

{{- define "tollkeeper.gatewayEnv" -}}
- { name: TOLLKEEPER_GATEWAY_HOST, value: 0.0.0.0 }
- { name: TOLLKEEPER_DATA_DIR, value: /var/lib/tollkeeper }
- { name: TOLLKEEPER_SHUTDOWN_GRACE_S, value: {{ .of.graceSeconds | quote }} }
- { name: TOLLKEEPER_START_WAIT_S, value: {{ .of.startWaitSeconds | quote }} }
{{ include "tollkeeper.fromFile" (dict "name" "TOLLKEEPER_REDIS_URL" "key" "redis-url") }}
{{ include "tollkeeper.fromFile" (dict "name" "TOLLKEEPER_KEY_PEPPER" "key" "key-pepper") }}
{{- if .root.Values.secrets.earlierPeppers }}
{{ include "tollkeeper.fromFile" (dict "name" "TOLLKEEPER_EARLIER_KEY_PEPPERS" "key" "earlier-key-peppers") }}
{{- end }}
{{- if .root.Values.proxy.secret }}
{{ include "tollkeeper.proxyEnv" .root }}
{{- end }}
{{- if .root.Values.tls.gateway }}
{{ include "tollkeeper.tlsEnv" (dict "name" "TLS" "port" "gateway" "clients" .root.Values.tls.gatewayClients) }}
{{- end }}
{{- if .root.Values.tls.ops }}
{{ include "tollkeeper.tlsEnv" (dict "name" "OPS_TLS" "port" "ops") }}
{{- end }}
{{- if .root.Values.secrets.upstreams }}
{{- range .root.Values.upstreamKeys }}
{{ include "tollkeeper.fromFile" (dict "name" . "key" .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What gateways keep: the settlement log of each worker, and as much besides as one has. */}}
{{- define "tollkeeper.dataSize" -}}
{{- $sums := include "tollkeeper.sums" . | fromJson -}}
{{- eq .part "gateway" | ternary .root.Values.gateway.dataSize "" | default (mul (add 1 $sums.workers) $sums.log) -}}
{{- end }}

{{- define "tollkeeper.gatewayVolumes" -}}
{{- $values := .root.Values -}}
{{- $keys := concat (list "redis-url" "key-pepper") (ternary (list "earlier-key-peppers") list $values.secrets.earlierPeppers) -}}
{{- $sources := list (dict "name" $values.secrets.gateway "keys" $keys) -}}
{{- if and $values.secrets.upstreams $values.upstreamKeys -}}
{{- $sources = append $sources (dict "name" $values.secrets.upstreams "keys" $values.upstreamKeys) -}}
{{- end -}}
{{- if $values.proxy.secret -}}
{{- $sources = append $sources (dict "name" $values.proxy.secret "keys" (list "https-proxy")) -}}
{{- end -}}
{{ include "tollkeeper.secretsVolume" $sources }}
- name: data
  emptyDir: { sizeLimit: {{ include "tollkeeper.dataSize" . }} }
{{- include "tollkeeper.fileVolumes" (dict "root" .root "ports" (list "gateway" "ops")) }}
{{- end }}

{{- define "tollkeeper.gatewayMounts" -}}
- { name: secrets, mountPath: /run/secrets/tollkeeper, readOnly: true }
- { name: data, mountPath: /var/lib/tollkeeper }
{{- include "tollkeeper.fileMounts" (dict "root" .root "ports" (list "gateway" "ops")) }}
{{- end }}

{{/* How a probe asks a port: over TLS where it has a certificate. */}}
{{- define "tollkeeper.asks" -}}
httpGet: { path: {{ .path }}, port: {{ .port }}{{ if index .root.Values.tls .port }}, scheme: HTTPS{{ end }} }
{{- end }}

{{- define "tollkeeper.settings" -}}
- configMapRef: { name: {{ .Release.Name }}-settings }
{{- end }}
