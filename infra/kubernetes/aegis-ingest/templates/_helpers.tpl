{{- define "aegis.name" -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- end }}
{{- define "aegis.selector" -}}
app.kubernetes.io/name: aegis-ingest
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "aegis.labels" -}}
{{ include "aegis.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "aegis.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "aegis.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}
{{- define "aegis.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
{{- /* What the pods of the worker and of the migration have in common. */ -}}
{{- define "aegis.pod" -}}
serviceAccountName: {{ include "aegis.serviceAccount" . }}
automountServiceAccountToken: false # it asks Kubernetes for nothing
enableServiceLinks: false # or a service named aegis-… would become a setting
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- define "aegis.container" -}}
image: {{ include "aegis.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}
{{- define "aegis.tls.env" -}}
{{- if .Values.caConfigMap }}
- {name: AEGIS_TLS_CA_FILE, value: /etc/aegis/ca/ca.crt}
{{- end }}
{{- if .Values.clientCertSecret }}
- {name: AEGIS_TLS_CERT_FILE, value: /etc/aegis/client/tls.crt}
- {name: AEGIS_TLS_KEY_FILE, value: /etc/aegis/client/tls.key}
{{- end }}
{{- end }}
{{- define "aegis.tls.mounts" -}}
{{- if .Values.caConfigMap }}
- {name: ca, mountPath: /etc/aegis/ca, readOnly: true}
{{- end }}
{{- if .Values.clientCertSecret }}
- {name: client-cert, mountPath: /etc/aegis/client, readOnly: true}
{{- end }}
{{- end }}
{{- define "aegis.tls.volumes" -}}
{{- if .Values.caConfigMap }}
- name: ca
  configMap: {name: {{ .Values.caConfigMap }}}
{{- end }}
{{- if .Values.clientCertSecret }}
- name: client-cert
  secret:
    secretName: {{ .Values.clientCertSecret }}
    defaultMode: 0440
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end }}
{{- end }}
{{- define "aegis.streams" -}}
{{- $root := . }}
{{- range $lane := .Values.lanes }}
{{- /* The archive reads the streams of embeddings, through a group of its own. */}}
{{- $name := ternary "embeddings" $lane (eq $lane "archive") }}
{{- $group := ternary (printf "%s-archive" $root.Values.group) $root.Values.group (eq $lane "archive") }}
{{- if eq (int $root.Values.partitions) 1 }}
- {stream: {{ printf "%s:%s" $root.Values.keyPrefix $name | quote }}, group: {{ $group | quote }}}
{{- else }}
{{- range $n := until (int $root.Values.partitions) }}
- {stream: {{ printf "%s:%s:{%d}" $root.Values.keyPrefix $name $n | quote }}, group: {{ $group | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
