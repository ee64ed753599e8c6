"""The local SageMaker: what AWS does around a container. It knows a container only by its HTTP contract."""
