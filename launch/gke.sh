#!/usr/bin/env bash
# A run on TPUs of Google Kubernetes Engine, as a JobSet. See --help.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'END'
Runs noisytwins_jax.main on a TPU slice of a GKE cluster, one pod per host, as a JobSet that restarts after preemptions.

  launch/gke.sh VERB --name=NAME [options] [-- --config=... --workdir=/mnt/BUCKET/... ...]

Verbs
  build     builds the image --image from this checkout (launch/Dockerfile) and pushes it
  run       creates the JobSet; one of the same name that has ended must be deleted first
  manifest  prints the JobSet
  status    the JobSet and its pods
  log       follows the output of the pod --pod
  delete    deletes the JobSet; the run saves and ends

Options
  --name=NAME           of the JobSet
  --namespace=NAME      Kubernetes namespace (default)
  --image=IMAGE         for example us-docker.pkg.dev/PROJECT/REPOSITORY/noisytwins:1
  --accelerator=TYPE    v4, v5e, v5p or v6e, or the value of the node label cloud.google.com/gke-tpu-accelerator
  --topology=AxB[xC]    chips of the slice, for example 2x2x4
  --chips-per-host=N    chips of each machine (4, or all of a slice with fewer)
  --spot                on spot nodes
  --bucket=NAME         Cloud Storage bucket, mounted at /mnt/NAME (needs the cluster's GCS FUSE driver)
  --service-account=N   Kubernetes service account with access to the bucket (default)
  --env=A=1,B=2         environment variables of the program
  --queue=NAME          Kueue's local queue
  --grace=SECONDS       between SIGTERM and SIGKILL, for saving (300; spot nodes end sooner)
  --restarts=N          maximum number of restarts of the JobSet (100)
  --pod=I               pod of the verb log (0)
  --dry-run             prints the commands without running them

If a pod is evicted, loses its node or ends by a signal, all pods restart; the run resumes from its newest checkpoint. If a
pod ends with status 1 or 2, an error that no restart fixes, the JobSet ends. Needs kubectl, with the cluster's
credentials, and the JobSet controller in the cluster.

Example
  launch/gke.sh run --name=twins --image=us-docker.pkg.dev/my/repo/noisytwins:1 --accelerator=v4 --topology=2x2x4 \
    --bucket=my-bucket -- --config=configs/inat19.py:noisytwins,128 --workdir=/mnt/my-bucket/runs/inat19
END
}

# --- options --------------------------------------------------------------------------------------------------------
opt_name='' opt_namespace=default opt_image='' opt_accelerator='' opt_topology='' opt_chips_per_host='' opt_spot=''
opt_bucket='' opt_service_account=default opt_env='' opt_queue='' opt_grace=300 opt_restarts=100 opt_pod=0
parse_options "name namespace image accelerator topology chips-per-host bucket service-account env queue grace restarts pod" \
  "spot" "$@"
VERBS="build run manifest status log delete"
verb=${WORDS[0]:-}
[[ $verb ]] || fail "Give a verb: ${VERBS// /, }; see $SCRIPT --help."
[[ " $VERBS " == *" $verb "* ]] || fail "There is no verb '$verb'; they are ${VERBS// /, }."
((${#WORDS[@]} == 1)) || fail "Unexpected word ${WORDS[1]}; options start with --, and the program's own go after --."
check_number grace "$opt_grace" 1
check_number restarts "$opt_restarts" 0
check_number pod "$opt_pod" 0
case $verb in
  build | run | manifest) [[ $opt_image ]] || fail "Give --image=<image>, for example us-docker.pkg.dev/my/repo/noisytwins:1." ;;
esac
[[ $verb == build || $opt_name ]] || fail "Give --name=<name>."
for name in "$opt_name" "$opt_namespace" "$opt_service_account" "$opt_queue"; do
  [[ $name =~ ^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$ ]] || fail "'$name' is not a name in Kubernetes: lowercase letters, digits and -."
done
opt_bucket=${opt_bucket#gs://}
opt_bucket=${opt_bucket%/}
[[ $opt_bucket =~ ^[a-z0-9._-]*$ ]] || fail "--bucket=$opt_bucket is not a bucket; give only its name."
case $verb in
  run | manifest)
    check_program ${REST[@]+"${REST[@]}"}
    [[ $opt_bucket && " ${REST[*]} " == *" --workdir=/mnt/$opt_bucket/"* ]] ||
      fail "Files of pods are lost unless they are in the bucket; give --bucket=<name> and the program --workdir=/mnt/<name>/<path>."
    [[ $opt_accelerator ]] || fail "Give --accelerator=<type>: v4, v5e, v5p or v6e."
    case $opt_accelerator in
      v4) accelerator=tpu-v4-podslice ;;
      v5e) accelerator=tpu-v5-lite-podslice ;;
      v5p) accelerator=tpu-v5p-slice ;;
      v6e) accelerator=tpu-v6e-slice ;;
      tpu*) accelerator=$opt_accelerator ;;
      *) fail "--accelerator=$opt_accelerator is not known; give v4, v5e, v5p, v6e, or a node label's value (tpu-…)." ;;
    esac
    [[ $opt_topology =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] || fail "Give --topology=<chips>, for example 2x2x4 or 4x8."
    chips=$((${opt_topology//x/ * }))
    if [[ ! $opt_chips_per_host ]]; then opt_chips_per_host=$((chips < 4 ? chips : 4)); fi
    check_number chips-per-host "$opt_chips_per_host" 1
    ((chips % opt_chips_per_host == 0)) || fail "$chips chips ($opt_topology) are not a whole number of hosts of $opt_chips_per_host."
    hosts=$((chips / opt_chips_per_host))
    ;;
  *) ((${#REST[@]} == 0)) || fail "$verb takes no arguments of the program; only run and manifest do." ;;
esac

# --- manifest -------------------------------------------------------------------------------------------------------
string() { # a YAML string in double quotes
  local text=$1
  text=$(printf '%s' "$text" | sed 's/\\/\\\\/g; s/"/\\"/g')
  printf '"%s"' "$text"
}

arguments() {
  local word
  for word in "${REST[@]}" --coordinator=auto; do printf '              - %s\n' "$(string "$word")"; done
}

variables() {
  local pair pairs
  IFS=, read -r -a pairs <<<"$opt_env"
  for pair in PYTHONUNBUFFERED=1 ${pairs[@]+"${pairs[@]}"}; do
    [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env takes comma-separated NAME=value pairs, not '$pair'."
    printf '              - {name: %s, value: %s}\n' "${pair%%=*}" "$(string "${pair#*=}")"
  done
}

manifest() {
  local environment
  environment=$(variables) || exit
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: "$opt_name"
  namespace: "$opt_namespace"
END
  if [[ $opt_queue ]]; then printf '  labels: {kueue.x-k8s.io/queue-name: "%s"}\n' "$opt_queue"; fi
  cat <<END
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool  # the slice is one node pool
spec:
  failurePolicy:
    maxRestarts: $opt_restarts
    rules:  # a job that fails by its podFailurePolicy has an error that no restart fixes; other failures restart all pods
    - name: mistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: Count  # evicted, with any status
            onPodConditions: [{type: DisruptionTarget, status: "True"}]
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [1, 2]}
        template:
END
  if [[ $opt_bucket ]]; then
    printf '          metadata:\n            annotations: {gke-gcsfuse/volumes: "true"}\n'
  fi
  cat <<END
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $opt_grace
            serviceAccountName: "$opt_service_account"
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $opt_topology
END
  if [[ $opt_spot ]]; then
    cat <<'END'
              cloud.google.com/gke-spot: "true"
            tolerations: [{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]
END
  fi
  cat <<END
            containers:
            - name: train
              image: $(string "$opt_image")
              ports: [{containerPort: 8471}, {containerPort: 8482}]  # libtpu, and the coordinator
              env:
$environment
              args:
$(arguments)
              resources:
                requests: {google.com/tpu: $opt_chips_per_host}
                limits: {google.com/tpu: $opt_chips_per_host}
END
  if [[ $opt_bucket ]]; then
    # Complete checkpoints are renamed as directories, and every pod must see immediately what another has written.
    cat <<END
              volumeMounts: [{name: bucket, mountPath: "/mnt/$opt_bucket"}]
            volumes:
            - name: bucket
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes:
                  bucketName: $(string "$opt_bucket")
                  mountOptions: "implicit-dirs,rename-dir-limit=1000000,metadata-cache:ttl-secs:0"
END
  fi
}

# --- verbs ----------------------------------------------------------------------------------------------------------
KUBECTL=(kubectl "--namespace=$opt_namespace")
case $verb in
  build)
    need docker "install it (https://docs.docker.com)"
    run docker build --platform=linux/amd64 "--file=$ROOT/launch/Dockerfile" "--tag=$opt_image" "$ROOT"
    run docker push "$opt_image"
    exit
    ;;
  manifest)
    manifest
    exit
    ;;
esac
need kubectl "install it (https://kubernetes.io/docs/tasks/tools)"
case $verb in
  run)
    text=$(manifest)
    if [[ $opt_dry_run ]]; then
      printf "%s <<'END'\n%s\nEND\n" "$(run "${KUBECTL[@]}" create --filename=-)" "$text"
    else
      run "${KUBECTL[@]}" create --filename=- <<<"$text"
    fi
    ;;
  status)
    run "${KUBECTL[@]}" get jobset "$opt_name"
    run "${KUBECTL[@]}" get pods "--selector=jobset.sigs.k8s.io/jobset-name=$opt_name" --output=wide
    ;;
  log)
    run "${KUBECTL[@]}" logs --follow --tail=100 --container=train --selector="jobset.sigs.k8s.io/jobset-name=$opt_name,$(
      printf 'batch.kubernetes.io/job-completion-index=%s' "$opt_pod"
    )"
    ;;
  delete) run "${KUBECTL[@]}" delete jobset "$opt_name" ;;
esac
