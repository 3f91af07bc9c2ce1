"""The rehearsal: what the manifests say is run for real, without a cluster.

Each "Pod" is processes in network, mount and process namespaces of their own, so ports and paths are those of the
manifests; `kuberay_pods` and `operator_twin` are doubles of KubeRay 1.7, `kubelet_twin` is a double of the kubelet.
What a rehearsal proves: commands, environment, paths, probes, the Serve config, promotion, reload, drift; what comes
of lost Pods, upgrades and a suspended service, as far as the doubles decide like the true ones. What it does not prove:
scheduling, the content of images, Services and DNS, RBAC, NetworkPolicy, volumes of a CSI, the operator itself. Those
belong to `pytest -m e2e_k3s` on a true cluster.
"""
