"""The keys that cluster files may have; cluster/check.py compares files with them.

They are the keys that proav's files and likely changes to them need. A shape is {key: shape}, a list of one
shape, or ANY. A key with "!" at its end must be present. Names come from Ray's cluster YAML reference, the
EC2 RunInstances and Compute Engine instances.insert interfaces, the ray.io/v1 resources of KubeRay 1.7, and
the Kubernetes Pod (v1).
"""

from typing import Any

ANY = None
Shape = Any


def keys(words: str, **shapes: Shape) -> dict[str, Shape]:
    """{word: ANY, ...} for the words; the given shapes replace or add keys."""
    return dict.fromkeys(words.split(), ANY) | shapes


LAUNCHER_PROVIDER = keys("type! coordinator_address external_head_ip internal_head_ip use_external_ips")
"""Keys of `provider` that Ray reads but does not have in its schema."""

NODE_CONFIGS: dict[str, Shape] = {
    "aws": keys(
        "InstanceType! ImageId KeyName SubnetId SubnetIds SecurityGroupIds EbsOptimized Placement "
        "UserData TagSpecifications LaunchTemplate Monitoring CpuOptions "
        "CapacityReservationSpecification InstanceInitiatedShutdownBehavior NetworkInterfaces MinCount "
        "MaxCount PrivateDnsNameOptions",
        IamInstanceProfile=keys("Arn Name"),
        MetadataOptions=keys(
            "HttpTokens HttpPutResponseHopLimit HttpEndpoint HttpProtocolIpv6 InstanceMetadataTags"
        ),
        InstanceMarketOptions=keys(
            "MarketType!",
            SpotOptions=keys(
                "MaxPrice SpotInstanceType BlockDurationMinutes ValidUntil InstanceInterruptionBehavior"
            ),
        ),
        BlockDeviceMappings=[
            keys(
                "DeviceName! VirtualName NoDevice",
                Ebs=keys(
                    "VolumeSize VolumeType Iops Throughput Encrypted KmsKeyId SnapshotId DeleteOnTermination"
                ),
            )
        ],
    ),
    "gcp": keys(
        "machineType! networkInterfaces guestAccelerators labels tags minCpuPlatform canIpForward "
        "shieldedInstanceConfig reservationAffinity",
        disks=[
            keys(
                "boot autoDelete type mode interface deviceName diskSizeGb",
                initializeParams=keys(
                    "diskSizeGb sourceImage diskType diskName labels provisionedIops provisionedThroughput"
                ),
            )
        ],
        metadata=keys("fingerprint", items=[keys("key! value!")]),
        serviceAccounts=[keys("email! scopes!")],
        scheduling=keys(
            "preemptible provisioningModel instanceTerminationAction automaticRestart onHostMaintenance "
            "maxRunDuration"
        ),
    ),
    "local": ANY,
}

RESOURCES = keys("", requests=ANY, limits=ANY)
CONTAINER = keys(
    "name! image! imagePullPolicy command args workingDir lifecycle livenessProbe readinessProbe "
    "startupProbe securityContext envFrom volumeDevices "
    "terminationMessagePath terminationMessagePolicy stdin tty restartPolicy",
    env=[keys("name! value valueFrom")],
    ports=[keys("containerPort! name protocol hostPort hostIP")],
    resources=RESOURCES,
    volumeMounts=[keys("name! mountPath! subPath subPathExpr readOnly mountPropagation")],
)
POD = keys(
    "nodeSelector nodeName affinity serviceAccountName priorityClassName schedulerName restartPolicy "
    "terminationGracePeriodSeconds securityContext "
    "hostNetwork hostIPC hostPID dnsPolicy dnsConfig runtimeClassName automountServiceAccountToken "
    "topologySpreadConstraints hostAliases shareProcessNamespace "
    "activeDeadlineSeconds enableServiceLinks overhead preemptionPolicy volumes",
    **{"containers!": [CONTAINER], "initContainers": [CONTAINER]},
    imagePullSecrets=[keys("name!")],
    tolerations=[keys("key operator value effect tolerationSeconds")],
)
METADATA = keys("name namespace labels annotations")
TEMPLATE = {"metadata": METADATA, "spec!": POD}
GROUP = keys("rayStartParams labels resources", **{"template!": TEMPLATE})
CLUSTER = keys(
    "rayVersion! enableInTreeAutoscaling headServiceAnnotations gcsFaultToleranceOptions "
    "historyServerOptions managedBy networkPolicy suspend tlsOptions upgradeStrategy",
    authOptions=keys("mode! secretName enableK8sTokenAuth"),
    autoscalerOptions=keys(
        "version upscalingMode idleTimeoutSeconds image imagePullPolicy securityContext env envFrom "
        "volumeMounts command args",
        resources=RESOURCES,
    ),
    **{
        "headGroupSpec!": GROUP | keys("serviceType headService enableIngress ingressOptions"),
        "workerGroupSpecs!": [
            GROUP
            | keys(
                "groupName! replicas minReplicas! maxReplicas! numOfHosts idleTimeoutSeconds "
                "scaleStrategy suspend priority"
            ),
        ],
    },
)
KUBERAY: dict[str, Shape] = {
    "RayCluster": CLUSTER,
    "RayJob": keys(
        "entrypoint! submissionMode shutdownAfterJobFinishes ttlSecondsAfterFinished backoffLimit "
        "activeDeadlineSeconds preRunningDeadlineSeconds runtimeEnvYAML "
        "jobId metadata suspend managedBy deletionStrategy clusterSelector submitterPodTemplate "
        "submitterConfig entrypointNumCpus entrypointNumGpus entrypointResources",
        **{"rayClusterSpec!": CLUSTER},
    ),
    "RayService": keys(
        "serveConfigV2! serviceUnhealthySecondThreshold deploymentUnhealthySecondThreshold "
        "excludeHeadPodFromServeSvc rayClusterDeletionDelaySeconds "
        "upgradeStrategy serveService suspend managedBy",
        **{"rayClusterConfig!": CLUSTER},
    ),
}

SERVE_KEYS = keys(
    "proxy_location grpc_options logging_config target_capacity",
    http_options=keys("host port root_path request_timeout_s keep_alive_timeout_s"),
    **{
        "applications!": [
            keys(
                "name import_path! route_prefix args runtime_env deployments host port "
                "autoscaling_policy logging_config external_scaler_enabled"
            )
        ]
    },
)
