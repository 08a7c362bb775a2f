{{/* Names are fixed, not derived from the release: there is one installation per cluster, and parts know each other by them. */}}
{{- define "container-migration.operator" -}}container-migration-operator{{- end }}
{{- define "container-migration.agent" -}}container-migration-agent{{- end }}

{{/* User names of the two ServiceAccounts, as the API server sees them. */}}
{{- define "container-migration.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "container-migration.operator" . }}
{{- end }}
{{- define "container-migration.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "container-migration.agent" . }}
{{- end }}

{{- define "container-migration.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Takes (dict "root" $ "component" "operator"); immutable in Deployment and DaemonSet, so without versions. */}}
{{- define "container-migration.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Takes (dict "root" $ "component" "operator"). */}}
{{- define "container-migration.image" -}}
{{- $image := index .root.Values.image .component -}}
image: {{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{/* Neither root nor able to become it, and nothing to write to. */}}
{{- define "container-migration.confinedPod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}
{{- define "container-migration.confinedContainer" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/*
Who asks, as variables of an admission policy. `node` is the node of the pod that the token is bound to: the API server
puts it there, so an agent can speak for no other node. Empty for tokens that are not bound to a scheduled pod.
*/}}
{{- define "container-migration.callers" -}}
- name: isOperator
  expression: request.userInfo.username == {{ include "container-migration.operatorUser" . | squote }}
- name: isAgent
  expression: request.userInfo.username == {{ include "container-migration.agentUser" . | squote }}
{{ include "container-migration.callerNode" . }}
{{- end }}
{{- define "container-migration.callerNode" -}}
- name: node
  expression: request.userInfo.?extra[?'authentication.kubernetes.io/node-name'][?0].orValue('')
{{- end }}

{{/* Binds the policy of the given name everywhere: (dict "root" $ "name" …). */}}
{{- define "container-migration.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "container-migration.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end }}
