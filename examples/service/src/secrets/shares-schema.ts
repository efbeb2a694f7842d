import * as z from 'zod';
import { time } from '../http/pagination.ts';
import type { Permission } from '../roles/permissions.ts';

/** What may be shared, and what it amounts to. Passing on is not among it: who may share is for the owner and for roles to say. */
export const SHARED_PERMISSIONS = {
  read: ['secrets:read', 'secrets:reveal'],
  write: ['secrets:read', 'secrets:reveal', 'secrets:update'],
} as const satisfies Record<string, readonly Permission[]>;

export type SharePermission = keyof typeof SHARED_PERMISSIONS;

export const GRANTEE_TYPES = ['user', 'role', 'service_account'] as const;
export type GranteeKind = (typeof GRANTEE_TYPES)[number];

const permission = z.enum(['read', 'write']).describe('`read`: see the secret and reveal its value. `write`: give it new values as well.');

const grantee = z
  .strictObject({
    type: z.enum(GRANTEE_TYPES),
    id: z.string().min(1).max(128).optional(),
    email: z.email().max(254).transform((text) => text.toLowerCase()).optional().describe('Of a person, in place of the id.'),
  })
  .refine(({ id, email }) => (id === undefined) !== (email === undefined), 'must be named by an id or by an e-mail address, not both')
  .refine(({ type, email }) => email === undefined || type === 'user', 'only a person has an e-mail address');

export const createShareBody = z.strictObject({
  grantee,
  permission,
  expires_at: z.iso.datetime({ offset: true }).optional().describe('Left out: until it is revoked.'),
});

export const MAX_VIEWS = 100;
export const MIN_PASSPHRASE_CHARACTERS = 8;

export const createLinkBody = z.strictObject({
  max_views: z.int().min(1).max(MAX_VIEWS).default(1).describe('How often it can be opened.'),
  expires_in_s: z.int().min(1).default(86_400).describe('The settings of the service limit it.'),
  passphrase: z
    .string()
    .refine((text) => [...text].length >= MIN_PASSPHRASE_CHARACTERS && [...text].length <= 128, `must have ${MIN_PASSPHRASE_CHARACTERS} to 128 characters`)
    .optional()
    .describe('To be told on another way than the link.'),
});

export const openLinkBody = z.strictObject({ passphrase: z.string().max(1024).optional() });

const granteeAnswer = z.object({
  type: z.enum([...GRANTEE_TYPES, 'link']),
  id: z.string().nullable().describe('`null` for a link, which is for whoever has it.'),
  label: z.string().nullable().describe('The e-mail address of a person, the name of a role or of a service account; `null` where there is none any more.'),
});

export const share = z
  .object({
    id: z.uuid(),
    secret_id: z.uuid(),
    grantee: granteeAnswer,
    permission,
    created_by: z.string(),
    created_at: time,
    expires_at: time.nullable(),
    revoked_at: time.nullable(),
    max_views: z.int().nullable().describe('Of a link.'),
    views: z.int().describe('How often a link was opened.'),
    version: z.int().nullable().describe('Which version of the value a link opens: the one that counted when it was made.'),
    intact: z.boolean().nullable().describe('`false` for a share that was changed in the database: it grants nothing. `null` for a link, which tells when it is opened.'),
  })
  .meta({ id: 'SecretShare' });

export const sharedWithMe = z
  .object({
    id: z.uuid(),
    secret: z.object({ id: z.uuid(), name: z.string(), type: z.string() }),
    grantee: granteeAnswer,
    permission,
    owner: z.object({ id: z.string(), label: z.string().nullable() }),
    created_at: time,
    expires_at: time.nullable(),
  })
  .meta({ id: 'SharedSecret' });

export const createdLink = share
  .extend({
    url: z.string().describe('Shown this once. Opening the address shows a button; only pressing it uses up a view.'),
    token: z.string().describe('Shown this once: the part of the URL behind `#`.'),
  })
  .meta({ id: 'CreatedSecretLink' });

export const openedLink = z
  .object({
    value: z.string(),
    views_left: z.int(),
    expires_at: time,
  })
  .meta({ id: 'OpenedSecretLink' });
