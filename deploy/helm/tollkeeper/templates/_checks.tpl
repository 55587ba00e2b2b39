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

{{/* The settings that sums go by: workers, what each writes, and what its memory holds. */}}
{{- define "tollkeeper.summed" -}}
{{- list "WORKERS" "SETTLEMENT_LOG_BYTES_MAX" "BUFFERED_BYTES_MAX" "CACHE_BYTES_MAX" "CAPACITY_WAITING_BYTES_MAX" "HEADS_BYTES_MAX" "SOCKETS_KEPT_BYTES_MAX" | toJson -}}
{{- end }}

{{/*
The settings that a part is given (`gateway`, `sidecar`), by name, as texts. A gateway's variables go before its `config`. A sidecar
has its own, and those of `settings` but WORKERS and keepers' own. Its `config` is not seen here, so it is given all that sums go by.
*/}}
{{- define "tollkeeper.given" -}}
{{- $values := .root.Values -}}
{{- $given := dict -}}
{{- if eq .part "sidecar" -}}
{{- $known := .root.Files.Get "files/settings.json" | fromJson -}}
{{- range include "tollkeeper.summed" . | fromJsonArray -}}
{{- $_ := set $given . (get $known .).default -}}
{{- end -}}
{{- range $name, $value := omit $values.settings "WORKERS" -}}
{{- if not (or (kindIs "invalid" $value) (get $known $name | default dict).keepers) }}{{ $_ := set $given $name $value }}{{ end -}}
{{- end -}}
{{- else -}}
{{- range $name, $value := dig "settings" dict $values.config }}{{ $_ := set $given (upper $name) $value }}{{ end -}}
{{- end -}}
{{- range $name, $value := eq .part "sidecar" | ternary $values.sidecar.settings $values.settings -}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $given $name $value }}{{ end -}}
{{- end -}}
{{- range $name, $value := $given }}{{ $_ := set $given $name (include "tollkeeper.text" $value) }}{{ end -}}
{{- toJson $given -}}
{{- end }}

{{/*
The sums of a part: its `workers`; the bytes of memory that they may take by their settings, where 74 MiB are an idle worker, its runs
and its open jobs; and those of one worker's `log`.
*/}}
{{- define "tollkeeper.sums" -}}
{{- $known := .root.Files.Get "files/settings.json" | fromJson -}}
{{- $given := include "tollkeeper.given" . | fromJson -}}
{{- $numbers := list -}}
{{- range include "tollkeeper.summed" . | fromJsonArray -}}
{{- $numbers = append $numbers (get $given . | default (get $known .).default | int64) -}}
{{- end -}}
{{- $bytes := mul 74 1048576 -}}
{{- range slice $numbers 2 }}{{ $bytes = add $bytes . }}{{ end -}}
{{- $workers := first $numbers -}}
{{- dict "workers" $workers "bytes" (mul $workers $bytes) "log" (index $numbers 1) | toJson -}}
{{- end }}

{{/* Resources without quantities that are empty. */}}
{{- define "tollkeeper.resources" -}}
{{- $resources := deepCopy . -}}
{{- range $kind, $amounts := . -}}
{{- range $name, $amount := $amounts -}}
{{- if eq (toString $amount) "" }}{{ $_ := unset (get $resources $kind) $name }}{{ end -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{/* The resources of a part: where `memory` is empty, so much for each worker. A limit is twice what settings allow, and more. */}}
{{- define "tollkeeper.gatewayResources" -}}
{{- $sums := include "tollkeeper.sums" . | fromJson -}}
{{- $allowed := div (mul 2 $sums.bytes) 1048576 -}}
{{- $usual := dict "requests" (mul 96 $sums.workers) "limits" (add $allowed (mul (sub .limit 628) $sums.workers)) -}}
{{- $resources := deepCopy (get .root.Values .part).resources -}}
{{- range $kind, $mib := $usual -}}
{{- if not (dig $kind "memory" "" $resources) -}}
{{- $_ := set (get $resources $kind) "memory" (printf "%dMi" $mib) -}}
{{- end -}}
{{- end -}}
{{- include "tollkeeper.resources" $resources -}}
{{- end }}

{{/* A file that a setting of a sidecar names is one that the sidecar mounts: else it would not start. */}}
{{- define "tollkeeper.sidecarFiles" -}}
{{- $values := .root.Values -}}
{{- $known := .root.Files.Get "files/settings.json" | fromJson -}}
{{- $wrong := list -}}
{{- $mounted := list "/etc/tollkeeper/" -}}
{{- if $values.secrets.files }}{{ $mounted = append $mounted "/run/files/" }}{{ end -}}
{{- range list "gateway" "ops" }}{{ if get $values.tls . }}{{ $mounted = append $mounted (printf "/run/tls/%s/" .) }}{{ end }}{{ end -}}
{{- range $name, $path := include "tollkeeper.given" . | fromJson -}}
{{- $place := hasKey $values.sidecar.settings $name | ternary "sidecar.settings" "settings" -}}
{{- if and $path (eq (get $known $name | default dict).right "the path of a file") (not (regexMatch (printf "^(%s)[^/]+$" ($mounted | join "|")) $path)) -}}
{{- $wrong = append $wrong (printf "%s.%s is %q, which a sidecar does not mount: put the file into the Secret of secrets.files, and say /run/files/<key>" $place $name $path) -}}
{{- end -}}
{{- end -}}
{{- if $wrong }}{{ fail (printf "\n%s" ($wrong | join "\n")) }}{{ end -}}
{{- end }}

{{/* What works, and is hardly meant so. */}}
{{- define "tollkeeper.warnings" -}}
{{- range $part, $place := .Values.gateway.enabled | ternary (dict "gateway" "settings") dict | merge (dict "sidecar" "sidecar.settings") -}}
{{- $workers := (include "tollkeeper.sums" (dict "root" $ "part" $part) | fromJson).workers | int64 -}}
{{- $cores := include "tollkeeper.text" (dig "limits" "cpu" "" (get $.Values $part).resources) -}}
{{- if and $cores (gt (mul 1000 $workers) (include "tollkeeper.milli" $cores | int64)) }}
WARNING: {{ $place }}.WORKERS is {{ $workers }}, and {{ $part }}.resources.limits.cpu is {{ $cores }}: workers wait for each other. A worker uses up to one core.
{{- end }}
{{- end }}
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
{{- $of_files := dict "config.settings" (dig "settings" dict $values.config) "keeper.config.settings" (dig "settings" dict $values.keeper.config) -}}
{{- range $place, $settings := merge (dict "settings" $values.settings "sidecar.settings" $values.sidecar.settings) $of_files -}}
{{- range $name, $value := $settings -}}
{{- $path := printf "%s.%s" $place $name -}}
{{- $setting := upper $name | trimPrefix "TOLLKEEPER_" -}}
{{- $spelled := hasKey $of_files $place | ternary (lower $setting) $setting -}}
{{- $word := regexFind "^[A-Z]{3,}" $setting | trunc 6 -}}
{{- if not (hasKey $defaults $setting) -}}
{{- $near := list -}}
{{- range $known, $_ := $defaults }}{{ if and $word (contains $word $known) }}{{ $near = append $near $known }}{{ end }}{{ end -}}
{{- $wrong = append $wrong (printf "%s is not a setting: docs/settings.md has all%s" $path ($near | empty | ternary "" (printf ", such as %s" ($near | sortAlpha | join ", " | trunc 200)))) -}}
{{- else if ne $name $spelled -}}
{{- $wrong = append $wrong (printf "%s is written %s.%s" $path $place $spelled) -}}
{{- else if and (kindIs "invalid" (get $defaults $setting)) (not (hasKey $of_files $place)) -}}
{{- $wrong = append $wrong (printf "%s is a secret: it belongs into the Secret of secrets.gateway or secrets.keeper, and there into keeper.keys where it is one of those" $path) -}}
{{- else if hasKey $own $setting -}}
{{- $said := get $own $setting | replace "gateway." (hasPrefix "sidecar" $place | ternary "sidecar." "gateway.") -}}
{{- if and (hasPrefix "keeper" $place) (hasPrefix "gateway" $said) }}{{ $said = "" }}{{ end -}}
{{- $wrong = append $wrong (printf "%s is given by the chart: %s" $path ($said | empty | ternary "leave it out" (printf "say %s" $said))) -}}
{{- else if and (eq $place "sidecar.settings") (get $defaults $setting).keepers -}}
{{- $wrong = append $wrong (printf "%s is read by keepers alone: say settings.%s" $path $setting) -}}
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
{{- $sums := dict "keeper" (dict "bytes" (mul 149 1048576)) -}}
{{- range list "gateway" "sidecar" }}{{ $_ := set $sums . (include "tollkeeper.sums" (dict "root" $ "part" .) | fromJson) }}{{ end -}}
{{- range $part := list "gateway" "sidecar" "keeper" "migrate" "backup" "archive" -}}
{{- $resources := (get $values $part).resources -}}
{{- $limit := include "tollkeeper.text" (dig "limits" "memory" "" $resources) -}}
{{- $needs := (get $sums $part | default dict).bytes | int64 -}}
{{- if and $limit (lt (include "tollkeeper.milli" $limit | int64) (mul 1000 $needs)) -}}
{{- $wrong = append $wrong (printf "%s.resources.limits.memory is %s, and %s take up to %dMi: give at least that%s" $part $limit (eq $part "keeper" | ternary "a keeper's processes" (printf "%d worker(s)" ((get $sums $part | default dict).workers | int64))) (add 1 (div (sub $needs 1) 1048576)) (eq $part "keeper" | ternary "" ", or leave it empty")) -}}
{{- end -}}
{{- range $kind := list "cpu" "memory" -}}
{{- $asked := include "tollkeeper.text" (dig "requests" $kind "" $resources) -}}
{{- $most := include "tollkeeper.text" (dig "limits" $kind "" $resources) -}}
{{- if and $asked $most (gt (include "tollkeeper.milli" $asked | int64) (include "tollkeeper.milli" $most | int64)) -}}
{{- $wrong = append $wrong (printf "%s.resources.requests.%s is %s, above the limit of %s: ask for that much at most" $part $kind $asked $most) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $workers := int64 $sums.gateway.workers -}}
{{- $logs := mul $workers $sums.gateway.log -}}
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
{{- $documents := dict "config" $values.config "keeper.config" $values.keeper.config -}}
{{- range $place, $document := $documents -}}
{{- $rest := regexReplaceAll "\\$(\\$|\\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\\})" ($document | toJson) "" -}}
{{- range regexFindAll "[\"\\s:/@=]\\$\\(?[A-Z][A-Z0-9_]+[^\\w$]" $rest -1 | uniq -}}
{{- $name := regexFind "[A-Z][A-Z0-9_]+" . -}}
{{- $wrong = append $wrong (printf "%s names $%s, which is taken as it stands: write ${%s} for a variable, and $$ for a dollar sign" $place $name $name) -}}
{{- end -}}
{{- end -}}
{{- $named := list -}}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" ($values.config | toJson | replace "$$" "") -1 | uniq -}}
{{- $named = append $named (. | trimPrefix "${" | trimSuffix "}") -}}
{{- end -}}
{{- range $named -}}
{{- if not (has . $values.upstreamKeys) -}}
{{- $wrong = append $wrong (printf "config names ${%s}, and upstreamKeys lacks it: add it there, and to the Secret of secrets.upstreams" .) -}}
{{- end -}}
{{- end -}}
{{- range $values.upstreamKeys -}}
{{- if hasPrefix "TOLLKEEPER_" . -}}
{{- $wrong = append $wrong (printf "upstreamKeys has %s, which no upstream is called with: say settings.%s, or name the key otherwise" . (trimPrefix "TOLLKEEPER_" .)) -}}
{{- end -}}
{{- end -}}
{{- $built_in := dict "openai" (list "v1") "anthropic" (list "v1") "gemini" (list "v1" "v1beta") -}}
{{- $upstreams := dig "upstreams" dict $values.config -}}
{{- $uses := list -}}
{{- range $number, $route := dig "routes" list $values.config -}}
{{- $uses = append $uses (dict "place" (printf "routes[%d]" $number) "upstream" $route.upstream "paths" (list $route.path)) -}}
{{- end -}}
{{- range $key, $service := dig "services" dict $values.config -}}
{{- $uses = append $uses (dict "place" (printf "services.%s" $key) "upstream" $service.upstream "paths" $service.paths) -}}
{{- end -}}
{{- $by_default := or (not (hasKey $values.config "routes")) (dig "include_default_routes" false $values.config) -}}
{{- range $number, $model := dig "models" list $values.config -}}
{{- range $at, $target := $model.targets -}}
{{- $paths := (get $upstreams $target.upstream | default dict).family | empty | and $by_default | ternary (list "/v1/" "/v1beta/") list -}}
{{- $uses = append $uses (dict "place" (printf "models[%d].targets[%d]" $number $at) "upstream" $target.upstream "paths" $paths) -}}
{{- end -}}
{{- end -}}
{{- $known := concat (keys $built_in) (keys $upstreams) | uniq | sortAlpha -}}
{{- range $uses -}}
{{- if not (or (contains "${" .upstream) (has .upstream $known)) -}}
{{- $wrong = append $wrong (printf "config.%s.upstream is %s, which is no upstream: expected one of %s, or one more in config.upstreams" .place .upstream ($known | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- range $name, $upstream := $upstreams -}}
{{- $url := dig "base_url" "" $upstream | trimSuffix "/" -}}
{{- $last := regexFind "/[^/]+$" (regexReplaceAll "^[a-z]+://[^/]*" $url "") -}}
{{- $twice := and $by_default (has (trimPrefix "/" $last) (get $built_in ($upstream.family | default $name) | default list)) -}}
{{- range $uses -}}
{{- if eq $name .upstream -}}
{{- range .paths }}{{ if hasPrefix (printf "%s/" $last) . }}{{ $twice = true }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and $last $twice (not $upstream.path) -}}
{{- $wrong = append $wrong (printf "config.upstreams.%s.base_url ends in %s, and so begin the paths of calls, which would go to %s%s/…: leave %s out" $name $last $url $last $last) -}}
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
{{- range $place, $text := dict "config" $values.config "settings" $values.settings "sidecar.settings" $values.sidecar.settings "keeper.config" $values.keeper.config "proxy" $values.proxy -}}
{{- if and (contains "/run/files/" ($text | toJson)) (not $values.secrets.files) -}}
{{- $wrong = append $wrong (printf "%s names a file in /run/files, and secrets.files no Secret that has it: name it" $place) -}}
{{- end -}}
{{- end -}}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" ($values.keeper.config | toJson | replace "$$" "") -1 | uniq -}}
{{- $wrong = append $wrong (printf "keeper.config names %s, which no keeper has: name a file of secrets.files, /run/files/<key>" .) -}}
{{- end -}}
{{- range $part := list "image" "gateway" "keeper" "sidecar" -}}
{{- $said := get $values $part -}}
{{- if and $said.tag $said.digest -}}
{{- $wrong = append $wrong (printf "%s.tag is %s, and %s.digest is set too, which alone would count: change the digest, or set it to \"\" and keep the tag" $part $said.tag $part) -}}
{{- end -}}
{{- end -}}
{{- $runs := dict -}}
{{- range $part := list "keeper" "gateway" "sidecar" -}}
{{- $own := get $values $part -}}
{{- $said := or $own.tag $own.digest | empty | ternary $values.image $own -}}
{{- $_ := set $runs $part (not $said.digest | ternary (regexFind "^v?[0-9]+\\.[0-9]+\\.[0-9]+" ($said.tag | default $.Chart.AppVersion)) "") -}}
{{- end -}}
{{- range $part := list "gateway" "sidecar" -}}
{{- if and $values.keeper.enabled $runs.keeper (get $runs $part) -}}
{{- if gt ((semver (get $runs $part)).Compare (semver $runs.keeper)) 0 -}}
{{- $place := (get $values $part).tag | empty | ternary "image" $part -}}
{{- $wrong = append $wrong (printf "%s.tag is %s, newer than the keepers' %s: replace keepers first" $place (get $runs $part) $runs.keeper) -}}
{{- end -}}
{{- end -}}
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
{{- fail (printf "\n%s" ($wrong | uniq | join "\n")) -}}
{{- end -}}
{{- end }}
