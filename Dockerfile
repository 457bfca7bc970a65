# nnU-Net and this package for CUDA:  docker build -t invariance .
#     docker run --rm --gpus all --shm-size 8g -v /data:/data invariance nnUNetv2_train DATASET 3d_fullres 0 -tr AliceTrainer
# The wheels of torch bring CUDA; the host needs the NVIDIA driver and its container toolkit only.
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/nnunet_invariance
COPY . .
RUN pip install --no-cache-dir ".[evaluate,registration]"
ENV nnUNet_raw=/data/nnUNet_raw nnUNet_preprocessed=/data/nnUNet_preprocessed nnUNet_results=/data/nnUNet_results
WORKDIR /data
CMD ["nnunet-invariance", "doctor"]
