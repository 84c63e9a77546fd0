{{/* The names are fixed: see the head of values.yaml. The binaries' defaults are the same. */}}
{{- define "switchyard.controller" -}}switchyard-controller{{- end }}
{{- define "switchyard.agent" -}}switchyard-agent{{- end }}

{{/* What pods are selected by; it can never change. */}}
{{- define "switchyard.selector" -}}
app.kubernetes.io/name: switchyard
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of everything else: (dict "root" $ "component" "controller"). */}}
{{- define "switchyard.labels" -}}
{{ include "switchyard.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: switchyard
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An image: (dict "root" $ "image" .Values.agent.image). */}}
{{- define "switchyard.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What every container is held to; (list "NET_ADMIN") adds capabilities. */}}
{{- define "switchyard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- with . }}
  add: {{ toJson . }}
{{- end }}
{{- end }}
