"""params.yaml: read, validated, and handed to the stages."""
