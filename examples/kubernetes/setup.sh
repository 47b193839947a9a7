#!/bin/sh
# Set up Vault or OpenBao for a gateway with vault-middleware and its defaults: mounts, policy, database role, and the
# log-in with Kubernetes. Safe to run again: what is there is brought to what is written here, secrets are left alone.
#
#   VAULT_ADDR=https://… VAULT_TOKEN=… ./setup.sh
#
# It needs curl and jq, so it is the same for both servers. VAULT_TOKEN must be one that may do all this.

set -eu
umask 077

: "${VAULT_ADDR:?the address of the server}"
: "${VAULT_TOKEN:?a token that may set all this up}"

NAMESPACE="${NAMESPACE:-lotabots}"            # of the secrets, and of the pod in the cluster
ROLE="${ROLE:-api-gateway}"                   # at the auth method and at the database; also the service account's name
AUDIENCE="${AUDIENCE:-vault}"                 # as in deployment.yaml's projected token
# namespace: OpenBao, Vault Enterprise, HCP: a namespace with auth method and policy of its own.
# community: Vault Community: no namespaces, the name is the first part of every mount's path.
DEPLOYMENT="${DEPLOYMENT:-namespace}"

# How the server reaches the cluster. Inside the cluster the defaults are right: the server reviews tokens as itself.
KUBERNETES_HOST="${KUBERNETES_HOST:-https://kubernetes.default.svc}"
KUBERNETES_CA_FILE="${KUBERNETES_CA_FILE:-}"  # outside it: the cluster's CA, and
REVIEWER_TOKEN_FILE="${REVIEWER_TOKEN_FILE:-}" # a token of the service account vault-reviewer (rbac.yaml)

# Vault fills the two names in.
default_url='postgresql://{{username}}:{{password}}@postgres.lotabots.svc:5432/postgres?sslmode=verify-full'
DATABASE_URL="${DATABASE_URL:-$default_url}"
DATABASE_USER="${DATABASE_USER:-vault}"       # may create roles
DATABASE_PASSWORD_FILE="${DATABASE_PASSWORD_FILE:-}"  # empty: no database

TOKEN_TTL="${TOKEN_TTL:-1h}"
TOKEN_MAX_TTL="${TOKEN_MAX_TTL:-24h}"
LEASE_TTL="${LEASE_TTL:-1h}"
LEASE_MAX_TTL="${LEASE_MAX_TTL:-24h}"

case $DEPLOYMENT in
  namespace) space="$NAMESPACE/" mounts="" ;;
  community) space="" mounts="$NAMESPACE/" ;;
  *) echo "DEPLOYMENT is namespace or community, and not $DEPLOYMENT" >&2; exit 2 ;;
esac

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT INT TERM

# Neither the token nor a body is ever an argument, which every process of the machine could read.
printf 'header = "X-Vault-Token: %s"\n' "$VAULT_TOKEN" > "$scratch/curl"
[ -z "${VAULT_CACERT:-}" ] || printf 'cacert = "%s"\n' "$VAULT_CACERT" >> "$scratch/curl"

# ask METHOD PATH: one call with the body of standard input; the status in $status, the answer in $scratch/answer
ask() {
  status="$(curl --silent --show-error --config "$scratch/curl" --output "$scratch/answer" --write-out '%{http_code}' \
    --max-time 30 --request "$1" --data-binary @- "$VAULT_ADDR/v1/$2")"
}

# put PATH: write standard input, or end with what the server says
put() {
  ask POST "$1"
  case $status in
    2*) ;;
    *) echo "$1: the server answered $status: $(jq -rc '.errors // [] | join("; ")' < "$scratch/answer")" >&2; exit 1 ;;
  esac
}

# there PATH: whether the server has it
there() {
  ask GET "$1" < /dev/null
  [ "$status" = 200 ]
}

# mount PATH TYPE OPTIONS: enable an engine where none is
mount() {
  there "${space}sys/mounts/$1" || jq -n --arg type "$2" --argjson options "$3" '{$type, $options}' | put "${space}sys/mounts/$1"
  # KV version 2 answers 400 for a moment while it prepares its storage.
  tries=0
  while [ "$2" = kv ] && ! there "${space}$1/config" && [ "$status" = 400 ] && [ $tries -lt 50 ]; do
    tries=$((tries + 1))
    sleep 0.2
  done
}

echo "secrets"
[ -z "$space" ] || there "sys/namespaces/$NAMESPACE" || put "sys/namespaces/$NAMESPACE" < /dev/null
mount "${mounts}api-gateway" kv '{"version": "2"}'
mount "${mounts}shared" kv '{"version": "2"}'

echo "policy"
# What the gateway does, and no more. In a namespace paths are relative to it; `vault-middleware policy` explains more.
jq -n --rawfile policy /dev/stdin '{$policy}' << END | put "${space}sys/policies/acl/$ROLE"
path "${mounts}api-gateway/data/*"             { capabilities = ["read"] }
path "${mounts}shared/data/*"                  { capabilities = ["read"] }
path "${mounts}database/creds/$ROLE"           { capabilities = ["read"] }
path "sys/leases/renew"                        { capabilities = ["update"] }
path "sys/leases/revoke"                       { capabilities = ["update"] }
END

echo "log-in"
there "${space}sys/auth/kubernetes" || echo '{"type": "kubernetes"}' | put "${space}sys/auth/kubernetes"
if [ -n "$REVIEWER_TOKEN_FILE" ]; then
  jq -n --arg host "$KUBERNETES_HOST" --rawfile jwt "$REVIEWER_TOKEN_FILE" --rawfile ca "${KUBERNETES_CA_FILE:?is needed with REVIEWER_TOKEN_FILE}" '{
    kubernetes_host: $host, kubernetes_ca_cert: $ca, token_reviewer_jwt: ($jwt | rtrimstr("\n")), disable_local_ca_jwt: true
  }'
else
  jq -n --arg host "$KUBERNETES_HOST" '{kubernetes_host: $host}'
fi | put "${space}auth/kubernetes/config"
jq -n --arg role "$ROLE" --arg namespace "$NAMESPACE" --arg audience "$AUDIENCE" --arg ttl "$TOKEN_TTL" \
  --arg max "$TOKEN_MAX_TTL" '{
    bound_service_account_names: [$role], bound_service_account_namespaces: [$namespace], $audience,
    token_policies: [$role], token_ttl: $ttl, token_max_ttl: $max
  }' | put "${space}auth/kubernetes/role/$ROLE"

if [ -n "$DATABASE_PASSWORD_FILE" ]; then
  echo "database"
  mount "${mounts}database" database '{}'
  jq -n --arg url "$DATABASE_URL" --arg user "$DATABASE_USER" --arg role "$ROLE" \
    --rawfile password "$DATABASE_PASSWORD_FILE" '{
      plugin_name: "postgresql-database-plugin", connection_url: $url, username: $user,
      password: ($password | rtrimstr("\n")), allowed_roles: [$role]
    }' | put "${space}${mounts}database/config/postgres"
  # The revocation ends the user's sessions first, and does not fail for a user that is gone or owns something.
  jq -n --arg ttl "$LEASE_TTL" --arg max "$LEASE_MAX_TTL" --rawfile revocation /dev/stdin '{
      db_name: "postgres", default_ttl: $ttl, max_ttl: $max, revocation_statements: [$revocation],
      creation_statements: [
        "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '\''{{password}}'\'' VALID UNTIL '\''{{expiration}}'\''",
        "GRANT pg_read_all_data TO \"{{name}}\""
      ]
    }' << 'END' | put "${space}${mounts}database/roles/$ROLE"
DO $$ BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{{name}}') THEN
    PERFORM pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usename = '{{name}}';
    REASSIGN OWNED BY "{{name}}" TO CURRENT_USER;
    DROP OWNED BY "{{name}}";
    DROP ROLE "{{name}}";
  END IF;
END $$
END
fi

echo "done: a pod of the service account $ROLE in the namespace $NAMESPACE may log in as the role $ROLE"
