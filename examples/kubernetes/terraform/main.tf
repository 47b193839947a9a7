# What setup.sh does, for Terraform or OpenTofu: mounts, policy, database role, and the log-in with Kubernetes.
#
#   VAULT_ADDR=https://… VAULT_TOKEN=… terraform apply
#
# On Vault Community: terraform apply -var deployment=community

terraform {
  required_version = ">= 1.5"
  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 4.0"
    }
  }
}

variable "deployment" {
  description = "namespace (OpenBao, Vault Enterprise, HCP), or community: no namespaces, the name leads every mount's path."
  type        = string
  default     = "namespace"

  validation {
    condition     = contains(["namespace", "community"], var.deployment)
    error_message = "It is namespace or community."
  }
}

variable "namespace" {
  description = "Of the secrets, and of the pod in the cluster."
  type        = string
  default     = "lotabots"
}

variable "role" {
  description = "At the auth method and at the database; also the service account's name."
  type        = string
  default     = "api-gateway"
}

variable "audience" {
  description = "As in the Deployment's projected token."
  type        = string
  default     = "vault"
}

variable "kubernetes_host" {
  description = "The API server, as Vault reaches it."
  type        = string
  default     = "https://kubernetes.default.svc"
}

variable "kubernetes_ca_cert" {
  description = "The cluster's CA (PEM), for a server outside the cluster."
  type        = string
  default     = null
}

variable "token_reviewer_jwt" {
  description = "A token of the service account vault-reviewer, for a server outside the cluster."
  type        = string
  default     = null
  sensitive   = true
}

variable "database_url" {
  description = "Vault fills the two names in."
  type        = string
  default     = "postgresql://{{username}}:{{password}}@postgres.lotabots.svc:5432/postgres?sslmode=verify-full"
}

variable "database_user" {
  description = "May create roles."
  type        = string
  default     = "vault"
}

variable "database_password" {
  description = "It is in Terraform's state; rotate it at Vault afterwards (database/rotate-root/postgres)."
  type        = string
  sensitive   = true
}

variable "token_ttl" {
  description = "Seconds, as the other durations."
  type        = number
  default     = 3600
}

variable "token_max_ttl" {
  type    = number
  default = 86400
}

variable "lease_ttl" {
  type    = number
  default = 3600
}

variable "lease_max_ttl" {
  type    = number
  default = 86400
}

provider "vault" {
  skip_child_token = true
}

locals {
  has_namespace = var.deployment == "namespace"
  namespace     = local.has_namespace ? vault_namespace.secrets[0].path : null
  prefix        = local.has_namespace ? "" : "${var.namespace}/"
}

resource "vault_namespace" "secrets" {
  count = local.has_namespace ? 1 : 0
  path  = var.namespace
}

resource "vault_mount" "kv" {
  for_each  = toset(["api-gateway", "shared"])
  namespace = local.namespace
  path      = "${local.prefix}${each.key}"
  type      = "kv"
  options   = { version = "2" }
}

# What the gateway does, and no more. In a namespace paths are relative to it.
resource "vault_policy" "gateway" {
  namespace = local.namespace
  name      = var.role
  policy    = <<-END
    path "${local.prefix}api-gateway/data/*"          { capabilities = ["read"] }
    path "${local.prefix}shared/data/*"               { capabilities = ["read"] }
    path "${local.prefix}database/creds/${var.role}"  { capabilities = ["read"] }
    path "sys/leases/renew"                           { capabilities = ["update"] }
    path "sys/leases/revoke"                          { capabilities = ["update"] }
  END
}

resource "vault_auth_backend" "kubernetes" {
  namespace = local.namespace
  type      = "kubernetes"
}

resource "vault_kubernetes_auth_backend_config" "cluster" {
  namespace            = local.namespace
  backend              = vault_auth_backend.kubernetes.path
  kubernetes_host      = var.kubernetes_host
  kubernetes_ca_cert   = var.kubernetes_ca_cert
  token_reviewer_jwt   = var.token_reviewer_jwt
  disable_local_ca_jwt = var.token_reviewer_jwt != null
}

resource "vault_kubernetes_auth_backend_role" "gateway" {
  namespace                        = local.namespace
  backend                          = vault_auth_backend.kubernetes.path
  role_name                        = var.role
  bound_service_account_names      = [var.role]
  bound_service_account_namespaces = [var.namespace]
  audience                         = var.audience
  token_policies                   = [vault_policy.gateway.name]
  token_ttl                        = var.token_ttl
  token_max_ttl                    = var.token_max_ttl
}

resource "vault_mount" "database" {
  namespace = local.namespace
  path      = "${local.prefix}database"
  type      = "database"
}

resource "vault_database_secret_backend_connection" "postgres" {
  namespace     = local.namespace
  backend       = vault_mount.database.path
  name          = "postgres"
  allowed_roles = [var.role]

  postgresql {
    connection_url = var.database_url
    username       = var.database_user
    password       = var.database_password
  }
}

resource "vault_database_secret_backend_role" "gateway" {
  namespace   = local.namespace
  backend     = vault_mount.database.path
  name        = var.role
  db_name     = vault_database_secret_backend_connection.postgres.name
  default_ttl = var.lease_ttl
  max_ttl     = var.lease_max_ttl

  creation_statements = [
    "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",
    "GRANT pg_read_all_data TO \"{{name}}\"",
  ]

  # Ends the user's sessions first, and does not fail for a user that is gone or owns something.
  revocation_statements = [trimspace(<<-END
    DO $$ BEGIN
      IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{{name}}') THEN
        PERFORM pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usename = '{{name}}';
        REASSIGN OWNED BY "{{name}}" TO CURRENT_USER;
        DROP OWNED BY "{{name}}";
        DROP ROLE "{{name}}";
      END IF;
    END $$
  END
  )]
}
