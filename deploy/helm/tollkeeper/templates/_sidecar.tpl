{{/*
Tollkeeper beside a container of yours, in a chart that depends on this one:

  spec:
    terminationGracePeriodSeconds: {{ include "tollkeeper.sidecar.grace" $toll }}
    initContainers:
      {{- include "tollkeeper.sidecar" (dict "root" $toll "config" "my-routes") | nindent 6 }}
    volumes:
      {{- include "tollkeeper.sidecar.volumes" (dict "root" $toll "config" "my-routes") | nindent 6 }}

`root` is the scope of this chart (.Subcharts.tollkeeper), `config` a ConfigMap with config.yaml. Your container
listens on 127.0.0.1 alone; the Service leads to the port `http`.
*/}}
{{- define "tollkeeper.sidecar" -}}
- name: tollkeeper
  image: {{ include "tollkeeper.image" (dict "root" .root "tag" "") | nindent 2 | trim }}
  restartPolicy: Always # runs on: started before your container, stopped after it
  args: [serve, --config, /etc/tollkeeper/config.yaml]
  ports:
    - { name: http, containerPort: 8080 }
    - { name: ops, containerPort: 9090 }
  env:
    {{- include "tollkeeper.gatewayEnv" (dict "root" .root "of" .root.Values.sidecar) | nindent 4 }}
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
    {{- toYaml .root.Values.sidecar.resources | nindent 4 }}
  {{- include "tollkeeper.security" . | nindent 2 }}
  volumeMounts:
    - { name: routes, mountPath: /etc/tollkeeper, readOnly: true }
    {{- include "tollkeeper.gatewayMounts" . | nindent 4 }}
{{- end }}

{{- define "tollkeeper.sidecar.volumes" -}}
- name: routes
  configMap: { name: {{ .config }} }
{{ include "tollkeeper.gatewayVolumes" . }}
{{- end }}

{{- define "tollkeeper.sidecar.grace" -}}
{{ add 15 .Values.sidecar.graceSeconds }}
{{- end }}
