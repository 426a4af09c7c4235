"""Names of osquery's tables on Linux, to tell them from misspelt names where osquery is not running.

Other tables, such as those of extensions, can be written with the prefix `osquery_`.
"""

from __future__ import annotations

from typing import Final

OSQUERY_TABLES: Final = frozenset(
    """
    acpi_tables apparmor_events apparmor_profiles apt_sources arp_cache augeas authorized_keys
    azure_instance_metadata azure_instance_tags block_devices carbon_black_info carves cb_info certificates
    chrome_extension_content_scripts chrome_extensions configurations cpu_info cpu_time cpuid crontab curl
    curl_certificate deb_package_files deb_packages device_file device_hash device_partitions disk_encryption
    dns_resolvers docker_container_envs docker_container_fs_changes docker_container_labels
    docker_container_mounts docker_container_networks docker_container_ports docker_container_processes
    docker_container_stats docker_containers docker_image_history docker_image_labels docker_image_layers
    docker_images docker_info docker_network_labels docker_networks docker_version docker_volume_labels
    docker_volumes ec2_instance_metadata ec2_instance_tags etc_hosts etc_protocols etc_services
    extended_attributes file file_events firefox_addons groups hardware_events hash hosts intel_me_info
    interface_addresses interface_details interface_ipv6 iptables jetbrains_plugins kernel_info kernel_keys
    kernel_modules known_hosts last listening_ports load_average logged_in_users lxd_certificates lxd_cluster
    lxd_cluster_members lxd_images lxd_instance_config lxd_instance_devices lxd_instances lxd_networks
    lxd_storage_pools magic md_devices md_drives md_personalities memory_array_mapped_addresses memory_arrays
    memory_device_mapped_addresses memory_devices memory_error_info memory_info memory_map mounts msr
    npm_packages oem_strings os_version osquery_events osquery_extensions osquery_flags osquery_info
    osquery_packs osquery_registry osquery_schedule pci_devices platform_info portage_keywords
    portage_packages portage_use process_envs process_events process_file_events process_memory_map
    process_namespaces process_open_files process_open_pipes process_open_sockets processes prometheus_metrics
    python_packages routes rpm_package_files rpm_packages seccomp_events secureboot secureboot_certificates
    selinux_events selinux_settings shadow shared_memory shell_history smbios_tables socket_events ssh_configs
    startup_items sudoers suid_bin syslog syslog_events system_controls system_info systemd_units time
    ulimit_info uptime usb_devices user_events user_groups user_ssh_keys users vscode_extensions yara
    yara_events yara_file yara_process ycloud_instance_metadata yum_sources
    """.split()  # noqa: SIM905
)
