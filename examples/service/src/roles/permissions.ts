/**
 * What may be allowed, by name. A role grants permissions, everywhere or in one project; a service account is limited to those in
 * its scopes. What a person owns, that person may do everything with, without any role.
 */

/** The name of each permission, and what it allows, in the words that the API's document shows. */
export const PERMISSIONS = {
  'projects:read': 'See projects.',
  'projects:write': 'Create, rename and archive projects.',
  'secrets:read': 'See that secrets are there: names, types, tags, dates. Never a value.',
  'secrets:create': 'Store new secrets.',
  'secrets:reveal': 'Read the values of secrets.',
  'secrets:update': 'Give secrets new values, and restore old ones.',
  'secrets:delete': 'Destroy secrets.',
  'secrets:share': 'Share secrets with others.',
  'api_keys:read': 'See which provider keys are stored. Never a value.',
  'api_keys:write': 'Store, rotate and revoke provider keys.',
  'devices:read': 'See devices and enrollment codes.',
  'devices:write': 'Make enrollment codes; suspend and revoke devices, and resume what one suspended.',
  'audit:read': 'Read the audit log, export it, and fetch its proofs.',
  'usage:read': 'See what was used, and what it cost.',
} as const satisfies Record<string, string>;

export type Permission = keyof typeof PERMISSIONS;

export const PERMISSION_NAMES = Object.keys(PERMISSIONS) as [Permission, ...Permission[]];
