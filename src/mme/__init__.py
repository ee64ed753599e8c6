"""Multi-model endpoints on DJL Serving: model packages, an embedded model server, a local SageMaker."""
