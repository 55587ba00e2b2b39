{{/*
Tollkeeper beside a container of yours, in a chart that depends on this one:

  metadata:
    labels:
      {{- include "tollkeeper.sidecar.labels" $toll | nindent 6 }}
  spec:
    terminationGracePeriodSeconds: {{ include "tollkeeper.sidecar.grace" $toll }}
    initContainers:
      {{- include "tollkeeper.sidecar" (dict "root" $toll "config" "my-routes") | nindent 6 }}
    volumes:
      {{- include "tollkeeper.sidecar.volumes" (dict "root" $toll "config" "my-routes") | nindent 6 }}

`root` is the scope of this chart (.Subcharts.tollkeeper), `config` a ConfigMap with config.yaml. Settings are those of
`settings` and `sidecar.settings`: a variable goes before `settings:` of that file. Your container
listens on 127.0.0.1 alone; the Service leads to the port `http`. By the label Prometheus finds the pod.
*/}}
{{- define "tollkeeper.sidecar" -}}
{{- $part := dict "root" .root "part" "sidecar" -}}
{{- include "tollkeeper.sidecarFiles" $part -}}
- name: tollkeeper
  image: {{ include "tollkeeper.image" (dict "root" .root "of" .root.Values.sidecar) | nindent 2 | trim }}
  restartPolicy: Always # runs on: started before your container, stopped after it
  args: [serve, --config, /etc/tollkeeper/config.yaml]
  ports:
    - { name: http, containerPort: 8080 }
    - { name: ops, containerPort: 9464 }
  env:
    {{- include "tollkeeper.gatewayEnv" (dict "root" .root "of" .root.Values.sidecar) | nindent 4 }}
    {{- range $name, $value := include "tollkeeper.given" $part | fromJson }}
    - { name: TOLLKEEPER_{{ $name }}, value: {{ $value | quote }} }
    {{- end }}
  # Never by Redis: while that is away your container starts, and calls are answered 503.
  startupProbe:
    {{- include "tollkeeper.asks" (dict "root" .root "path" "/livez" "port" "ops") | nindent 4 }}
    periodSeconds: 1
    failureThreshold: 60
  readinessProbe:
    tcpSocket: { port: http }
    periodSeconds: 2
    failureThreshold: 1
  livenessProbe:
    {{- include "tollkeeper.asks" (dict "root" .root "path" "/livez" "port" "ops") | nindent 4 }}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  lifecycle:
    # The traffic ends first: calls are finished while your container still runs.
    preStop: { exec: { command: [sh, -c, "sleep 5; kill -TERM 1"] } }
  resources:
    {{- include "tollkeeper.gatewayResources" (merge (dict "limit" 512) $part) | nindent 4 }}
  # All is said here: the pod is yours, and may say another user, or none.
  {{- include "tollkeeper.security" . | nindent 2 }}
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    seccompProfile: { type: RuntimeDefault }
  volumeMounts:
    - { name: routes, mountPath: /etc/tollkeeper, readOnly: true }
    {{- include "tollkeeper.gatewayMounts" . | nindent 4 }}
{{- end }}

{{- define "tollkeeper.sidecar.volumes" -}}
- name: routes
  configMap: { name: {{ .config }} }
{{- /* A kubelet gives files to root. By an fsGroup the user of the image could read them, but that is the pod's, which is
yours. So anybody may read them where they are mounted: in the sidecar alone. */}}
{{ include "tollkeeper.gatewayVolumes" (dict "root" .root "part" "sidecar") | replace "defaultMode: 0440" "defaultMode: 0444" }}
{{- end }}

{{- define "tollkeeper.sidecar.labels" -}}
tollkeeper: sidecar
{{- end }}

{{- define "tollkeeper.sidecar.grace" -}}
{{ add 15 .Values.sidecar.graceSeconds }}
{{- end }}
