#!/bin/sh
# What an image of hcsmoe_dist has from Debian 12, called by the Dockerfiles and by hcsmoe.def: the libraries of what launch/build.sh
# installs, mpirun, and ssh for mpirun over several hosts. Which versions these are is in /opt/hcsmoe/versions.txt.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q -y install --no-install-recommends \
  openmpi-bin libhdf5-103-1 libyaml-cpp0.7 libspdlog1.10 libpcre2-8-0 libicu72 zlib1g libxxhash0 liblbfgs0 openssh-client openssh-server
apt-get -q clean
rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
mkdir -p /opt/hcsmoe /run/sshd /work
dpkg-query -W >/opt/hcsmoe/versions.txt
useradd --uid 1000 --create-home hcsmoe
chown hcsmoe /work
