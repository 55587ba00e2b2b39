{{/*
What no schema can say: sums over several values, and names in one that another must have. `fail` tells all of them at once, each
with its path and what would be right. files/settings.json has each setting's default and what its value must be; null is a secret.
*/}}

{{/* A quantity of Kubernetes in thousandths, as "600m" of "0.6", or a number of bytes. */}}
{{- define "tollkeeper.milli" -}}
{{- $units := dict "m" 0.001 "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- mulf 1000.0 (float64 $number) (get $units (trimPrefix $number .)) | int64 -}}
{{- end }}

{{/* A value as text: Helm's own writes a number above a million as 1e+06. */}}
{{- define "tollkeeper.text" -}}
{{- if kindIs "string" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end }}

{{/* The value of a setting of a gateway: a variable goes before `config`, and that before the default. */}}
{{- define "tollkeeper.setting" -}}
{{- $defaults := .root.Files.Get "files/settings.json" | fromJson -}}
{{- $of_file := dig "settings" (lower .name) "" .root.Values.config -}}
{{- get .root.Values.settings .name | default $of_file | default (get $defaults .name).default | int64 -}}
{{- end }}

{{/* The bytes that the workers of a gateway may take by their settings; 74 MiB are an idle worker, its runs and its open jobs. */}}
{{- define "tollkeeper.workersBytes" -}}
{{- $bytes := mul 74 1048576 -}}
{{- range list "BUFFERED" "CACHE" "CAPACITY_WAITING" "HEADS" "SOCKETS_KEPT" -}}
{{- $bytes = add $bytes (include "tollkeeper.setting" (dict "root" $ "name" (printf "%s_BYTES_MAX" .))) -}}
{{- end -}}
{{- mul $bytes (include "tollkeeper.setting" (dict "root" . "name" "WORKERS")) -}}
{{- end }}

{{/* The resources of a gateway: where `memory` is empty, so much for each worker. A limit is twice what settings allow, and more. */}}
{{- define "tollkeeper.gatewayResources" -}}
{{- $workers := include "tollkeeper.setting" (dict "root" .root "name" "WORKERS") | int64 -}}
{{- $allowed := div (mul 2 (include "tollkeeper.workersBytes" .root)) 1048576 -}}
{{- $usual := dict "requests" (mul 96 $workers) "limits" (add $allowed (mul (sub .limit 628) $workers)) -}}
{{- $resources := deepCopy .resources -}}
{{- range $kind, $mib := $usual -}}
{{- if not (dig $kind "memory" "" $resources) -}}
{{- $_ := set (get $resources $kind) "memory" (printf "%dMi" $mib) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{- define "tollkeeper.checks" -}}
{{- $wrong := list -}}
{{- $values := .Values -}}
{{- $defaults := .Files.Get "files/settings.json" | fromJson -}}

{{- /* Settings: names, values, and those that the chart gives itself. */ -}}
{{- $own := dict
  "GATEWAY_HOST" "" "GATEWAY_PORT" "" "OPS_HOST" "" "OPS_PORT" "" "ADMIN_HOST" "" "ADMIN_PORT" "" "DATA_DIR" "" "SETTLEMENT_LOG_DIR" ""
  "SHUTDOWN_GRACE_S" "gateway.graceSeconds" "START_WAIT_S" "gateway.startWaitSeconds"
  "TLS_CERT_FILE" "tls.gateway" "TLS_KEY_FILE" "tls.gateway" "TLS_CLIENT_CA_FILE" "tls.gatewayClients"
  "OPS_TLS_CERT_FILE" "tls.ops" "OPS_TLS_KEY_FILE" "tls.ops" "ADMIN_TLS_CERT_FILE" "tls.admin" "ADMIN_TLS_KEY_FILE" "tls.admin" -}}
{{- range $place, $settings := dict "settings" $values.settings "config.settings" (dig "settings" dict $values.config) -}}
{{- range $name, $value := $settings -}}
{{- $path := printf "%s.%s" $place $name -}}
{{- $setting := upper $name | trimPrefix "TOLLKEEPER_" -}}
{{- $spelled := eq $place "settings" | ternary $setting (lower $setting) -}}
{{- $word := regexFind "^[A-Z]{3,}" $setting | trunc 6 -}}
{{- if not (hasKey $defaults $setting) -}}
{{- $near := list -}}
{{- range $known, $_ := $defaults }}{{ if and $word (contains $word $known) }}{{ $near = append $near $known }}{{ end }}{{ end -}}
{{- $wrong = append $wrong (printf "%s is not a setting: docs/settings.md has all%s" $path ($near | empty | ternary "" (printf ", such as %s" ($near | sortAlpha | join ", " | trunc 200)))) -}}
{{- else if ne $name $spelled -}}
{{- $wrong = append $wrong (printf "%s is written %s.%s" $path $place $spelled) -}}
{{- else if and (kindIs "invalid" (get $defaults $setting)) (eq $place "settings") -}}
{{- $wrong = append $wrong (printf "%s is a secret: it belongs into the Secret of secrets.gateway or secrets.keeper, and there into keeper.keys where it is one of those" $path) -}}
{{- else if hasKey $own $setting -}}
{{- $wrong = append $wrong (printf "%s is given by the chart: %s" $path (get $own $setting | default "leave it out" | replace "gateway." "say gateway." | replace "tls." "say tls.")) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $rule := get $defaults $setting | default dict -}}
{{- $text := include "tollkeeper.text" $value -}}
{{- $fits := or (not $rule.pattern) (regexMatch $rule.pattern $text) -}}
{{- if and $fits (hasKey $rule "most") -}}
{{- $number := float64 $text -}}
{{- $fits = and (le $number (float64 $rule.most)) (ge $number (float64 ($rule.least | default 0))) (or (not (hasKey $rule "above")) (gt $number (float64 $rule.above))) -}}
{{- end -}}
{{- if ne $text (trimSuffix "\n" $text) -}}
{{- $wrong = append $wrong (printf "%s ends with a line break: write it in quotes, or behind |-" $path) -}}
{{- else if and (ne $text (trim $text)) (not $rule.lines) -}}
{{- $wrong = append $wrong (printf "%s begins or ends with a space" $path) -}}
{{- else if not $fits -}}
{{- $wrong = append $wrong (printf "%s is %q: expected %s" $path $text $rule.right) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Sums: memory by workers, the volume by their logs, a request below its limit. */ -}}
{{- $workers := include "tollkeeper.setting" (dict "root" . "name" "WORKERS") | int64 -}}
{{- $least := dict "gateway" (include "tollkeeper.workersBytes" . | int64) "sidecar" (include "tollkeeper.workersBytes" . | int64) "keeper" (mul 149 1048576) -}}
{{- range $part := list "gateway" "sidecar" "keeper" "migrate" "backup" "archive" -}}
{{- $resources := (get $values $part).resources -}}
{{- $limit := include "tollkeeper.text" (dig "limits" "memory" "" $resources) -}}
{{- $needs := get $least $part | default 0 | int64 -}}
{{- if and $limit (lt (include "tollkeeper.milli" $limit | int64) (mul 1000 $needs)) -}}
{{- $wrong = append $wrong (printf "%s.resources.limits.memory is %s, and %s take up to %dMi: give at least that%s" $part $limit (eq $part "keeper" | ternary "a keeper's processes" (printf "%d worker(s)" $workers)) (add 1 (div (sub $needs 1) 1048576)) (eq $part "keeper" | ternary "" ", or leave it empty")) -}}
{{- end -}}
{{- range $kind := list "cpu" "memory" -}}
{{- $asked := include "tollkeeper.text" (dig "requests" $kind "" $resources) -}}
{{- $most := include "tollkeeper.text" (dig "limits" $kind "" $resources) -}}
{{- if and $asked $most (gt (include "tollkeeper.milli" $asked | int64) (include "tollkeeper.milli" $most | int64)) -}}
{{- $wrong = append $wrong (printf "%s.resources.requests.%s is %s, above the limit of %s: ask for that much at most" $part $kind $asked $most) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $logs := mul $workers (include "tollkeeper.setting" (dict "root" . "name" "SETTLEMENT_LOG_BYTES_MAX")) -}}
{{- with $values.gateway.dataSize -}}
{{- if lt (include "tollkeeper.milli" (include "tollkeeper.text" .) | int64) (mul 1000 $logs) -}}
{{- $wrong = append $wrong (printf "gateway.dataSize is %s, and the settlement logs of %d worker(s) take up to %d bytes, beyond which the pod is evicted with its logs: give more, or leave it empty" (include "tollkeeper.text" .) $workers $logs) -}}
{{- end -}}
{{- end -}}
{{- $scaling := $values.gateway.autoscaling -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.min) (int $scaling.max) -}}
{{- $wrong = append $wrong (printf "gateway.autoscaling.min is %d, above gateway.autoscaling.max, %d" (int $scaling.min) (int $scaling.max)) -}}
{{- end -}}
{{- $most := include "tollkeeper.text" (dig "limits" "cpu" "" $values.gateway.resources) -}}
{{- if and $most (ge (include "tollkeeper.milli" $scaling.cpu | int64) (include "tollkeeper.milli" $most | int64)) -}}
{{- $wrong = append $wrong (printf "gateway.autoscaling.cpu is %s, which a gateway never passes by its limit of %s: take less" $scaling.cpu $most) -}}
{{- end -}}
{{- end -}}

{{- /* Names that another value must have. */ -}}
{{- $named := list -}}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" ($values.config | toJson) -1 | uniq -}}
{{- $named = append $named (. | trimPrefix "${" | trimSuffix "}") -}}
{{- end -}}
{{- range $named -}}
{{- if not (has . $values.upstreamKeys) -}}
{{- $wrong = append $wrong (printf "config names ${%s}, and upstreamKeys lacks it: add it there, and to the Secret of secrets.upstreams" .) -}}
{{- end -}}
{{- end -}}
{{- if $values.networkPolicy.enabled -}}
{{- range $name, $upstream := dig "upstreams" dict $values.config -}}
{{- $url := dig "base_url" "" $upstream -}}
{{- $port := regexFind ":[0-9]+" (regexReplaceAll "^[a-z]+://(\\[[^]]*\\]|[^:/]*)" $url "") | trimPrefix ":" | default (hasPrefix "http://" $url | ternary "80" "443") -}}
{{- $open := list -}}
{{- range $values.networkPolicy.ports.upstreams }}{{ $open = append $open (toJson .) }}{{ end -}}
{{- if and $url (not (regexMatch "//(localhost|127\\.|\\[::1)" $url)) (not (has $port $open)) -}}
{{- $wrong = append $wrong (printf "config.upstreams.%s is at port %s, which networkPolicy.ports.upstreams does not open: add it" $name $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.upstreamKeys (not $values.secrets.upstreams) -}}
{{- $wrong = append $wrong "upstreamKeys has names, and secrets.upstreams no Secret that holds them: name it" -}}
{{- end -}}
{{- if and $values.secrets.upstreams (not $values.upstreamKeys) -}}
{{- $wrong = append $wrong "secrets.upstreams names a Secret, and upstreamKeys none of its keys: name those that are used" -}}
{{- end -}}
{{- range $place, $text := dict "config" $values.config "settings" $values.settings "keeper.config" $values.keeper.config "proxy" $values.proxy -}}
{{- if and (contains "/run/files/" ($text | toJson)) (not $values.secrets.files) -}}
{{- $wrong = append $wrong (printf "%s names a file in /run/files, and secrets.files no Secret that has it: name it" $place) -}}
{{- end -}}
{{- end -}}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" ($values.keeper.config | toJson) -1 | uniq -}}
{{- $wrong = append $wrong (printf "keeper.config names %s, which no keeper has: name a file of secrets.files, /run/files/<key>" .) -}}
{{- end -}}
{{- if and $values.proxy.exempt (not $values.proxy.secret) -}}
{{- $wrong = append $wrong "proxy.exempt says who is reached without the proxy, and proxy.secret names none" -}}
{{- end -}}
{{- if and $values.tls.gatewayClients (not $values.tls.gateway) -}}
{{- $wrong = append $wrong "tls.gatewayClients needs tls.gateway, the Secret with the authority that signs them (ca.crt)" -}}
{{- end -}}
{{- if and $values.gateway.agents (not $values.keeper.enabled) -}}
{{- $wrong = append $wrong "gateway.agents leads to this chart's keepers, and keeper.enabled is false: say settings.AGENTS and settings.AGENTS_KEEPER_URL" -}}
{{- end -}}
{{- with $values.ingress -}}
{{- if .enabled -}}
{{- if not $values.gateway.enabled -}}
{{- $wrong = append $wrong "ingress.enabled leads to this chart's gateways, and gateway.enabled is false" -}}
{{- end -}}
{{- if not .hosts -}}
{{- $wrong = append $wrong "ingress.hosts is empty, so that an Ingress would lead nowhere: name the hosts, such as llm.example.com" -}}
{{- end -}}
{{- range .tls -}}
{{- range .hosts -}}
{{- if not (has . $values.ingress.hosts) -}}
{{- $wrong = append $wrong (printf "ingress.tls has a certificate for %s, which is not in ingress.hosts" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $part := list "backup" "archive" -}}
{{- $job := get $values $part -}}
{{- if $job.enabled -}}
{{- if and (not $job.to) (not $job.claim) -}}
{{- $wrong = append $wrong (printf "%s.to or %s.claim says where it goes: a bucket (s3://…), or a PersistentVolumeClaim" $part $part) -}}
{{- else if and $job.to $job.claim -}}
{{- $wrong = append $wrong (printf "%s.to and %s.claim are both named: take one" $part $part) -}}
{{- else if and $job.claim $job.credentials -}}
{{- $wrong = append $wrong (printf "%s.credentials are those of a bucket, and %s.claim is a volume: leave one out" $part $part) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.backup.enabled (not $values.backup.image) -}}
{{- $wrong = append $wrong "backup.image is empty: name one with PostgreSQL's client programs (deploy/Dockerfile.backup makes it)" -}}
{{- end -}}

{{- if $wrong -}}
{{- fail (printf "\n%s" ($wrong | join "\n")) -}}
{{- end -}}
{{- end }}
