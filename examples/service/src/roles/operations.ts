/** `/api/roles`, and `/api/users/{id}/roles`: what roles there are, and who holds them. */
import * as z from 'zod';
import type { Clock } from '@keyguard/core/seams';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import { printable } from '../http/text.ts';
import type { Assignment, Assignments } from './assignments.ts';
import { PERMISSION_NAMES } from './permissions.ts';
import type { Role, Roles } from './store.ts';

const TAG = 'Roles';

/** People's ids are as sign-in makes them; service accounts' are UUIDs. */
export const subjectParams = z.strictObject({ id: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/) });

const name = z.string().regex(/^[a-z][a-z0-9_-]{0,63}$/, 'must be 1 to 64 of a-z, 0-9, - and _, and begin with a letter');
const permissions = z.array(z.enum(PERMISSION_NAMES)).min(1).max(PERMISSION_NAMES.length).describe('What whoever holds the role may do. Being an administrator is not among it.');
const description = printable(0, 200);

const createBody = z.strictObject({ name, description: description.default(''), permissions });
const updateBody = z
  .strictObject({ name: name.optional(), description: description.optional(), permissions: permissions.optional() })
  .refine((body) => Object.keys(body).length > 0, 'names nothing to change');

const role = z
  .object({
    id: z.uuid(),
    name: z.string(),
    description: z.string(),
    permissions: z.array(z.string()),
    is_system: z.boolean().describe('Made by the program: neither changed nor deleted by anybody.'),
    created_at: time,
    updated_at: time,
    intact: z.boolean().describe('Whether the row bears its MAC. False: somebody changed it in the database, and it grants nothing.'),
  })
  .meta({ id: 'Role' });

const grantBody = z.strictObject({
  role_id: z.uuid(),
  project_id: z.string().min(1).max(64).nullable().default(null).describe('Left out: everywhere.'),
  expires_at: time.nullable().default(null).describe('From this moment on it grants nothing. Left out: until it is revoked.'),
});

const assignment = z
  .object({
    id: z.uuid(),
    user_id: z.string().describe('A person, or a service account.'),
    role_id: z.uuid(),
    role: z.string(),
    project_id: z.string().nullable().describe('Null: everywhere.'),
    granted_by: z.string(),
    granted_at: time,
    expires_at: time.nullable(),
    intact: z.boolean().describe('Whether the row bears its MAC. False: somebody changed it in the database, and it grants nothing.'),
  })
  .meta({ id: 'RoleAssignment' });
export { assignment as assignmentSchema };

export interface RoleOperationsOptions {
  readonly roles: Roles;
  readonly assignments: Assignments;
  readonly clock: Clock;
}

export function roleOperations({ roles, assignments, clock }: RoleOperationsOptions): readonly Operation[] {
  return [
    operation(
      {
        id: 'listRoles', action: 'role.list', method: 'get', path: '/api/roles', tag: TAG, access: 'person',
        summary: 'List roles, newest first',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(role) } },
      },
      async ({ principal, query }) => ({ json: pageJson(await roles.list(principal, pageRequest(query)), roleJson) }),
    ),
    operation(
      {
        id: 'getRole', action: 'role.read', method: 'get', path: '/api/roles/{id}', tag: TAG, access: 'person',
        summary: 'Show one role',
        params: idParams,
        answers: { 200: { description: 'The role', json: role } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => answer(await roles.get(principal, params.id)),
    ),
    operation(
      {
        id: 'createRole', action: 'role.create', method: 'post', path: '/api/roles', tag: TAG, access: 'administrator', idempotent: true,
        summary: 'Make a role',
        body: createBody,
        answers: { 201: { description: 'The role', json: role } },
        problems: ['name_taken'],
      },
      async ({ principal, body }) => ({ status: 201, ...answer(await roles.create(principal, body)) }),
    ),
    operation(
      {
        id: 'updateRole', action: 'role.update', method: 'patch', path: '/api/roles/{id}', tag: TAG, access: 'administrator',
        stepUp: 'approve',
        summary: 'Change what a role is called and what it grants, for everybody who holds it',
        description: 'Nobody adds the revealing or sharing of secrets to a role that they hold themselves, or that a service account of theirs holds.',
        params: idParams,
        body: updateBody,
        answers: { 200: { description: 'The role as it is now', json: role } },
        problems: ['not_found', 'system_role', 'name_taken', 'not_intact', 'four_eyes_required', 'precondition_failed'],
      },
      async ({ principal, params, body: { name: newName, description: newDescription, permissions: newPermissions }, ifMatch }) => {
        const change = {
          ...(newName !== undefined && { name: newName }),
          ...(newDescription !== undefined && { description: newDescription }),
          ...(newPermissions !== undefined && { permissions: newPermissions }),
        };
        return answer(await roles.update(principal, params.id, change, ifMatch));
      },
    ),
    operation(
      {
        id: 'deleteRole', action: 'role.delete', method: 'delete', path: '/api/roles/{id}', tag: TAG, access: 'administrator',
        summary: 'Delete a role that nobody holds',
        params: idParams,
        answers: { 204: { description: 'Deleted' } },
        problems: ['not_found', 'system_role', 'role_assigned', 'precondition_failed'],
      },
      async ({ principal, params, ifMatch }) => {
        await roles.remove(principal, params.id, ifMatch);
        return {};
      },
    ),
    operation(
      {
        id: 'listUserRoles', action: 'role.list_assignments', method: 'get', path: '/api/users/{id}/roles', tag: TAG, access: 'person',
        summary: 'List the roles of a person or of a service account, newest first',
        description: 'Everybody sees their own, and those of their service accounts; administrators see all.',
        params: subjectParams,
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(assignment) } },
        problems: ['not_found'],
      },
      async ({ principal, params, query }) => ({ json: pageJson(await assignments.list(principal, params.id, pageRequest(query)), assignmentJson) }),
    ),
    operation(
      {
        id: 'grantUserRole', action: 'role.grant', method: 'post', path: '/api/users/{id}/roles', tag: TAG, access: 'administrator',
        stepUp: 'approve', idempotent: true,
        summary: 'Give a role to a person or to a service account',
        description: 'Nobody gives a role that reveals or shares secrets to themself, or to a service account of theirs: another administrator must.',
        params: subjectParams,
        body: grantBody.refine(
          ({ expires_at: end }) => end === null || Date.parse(end) > clock.nowMs(),
          { path: ['expires_at'], message: 'is not in the future' },
        ),
        answers: { 201: { description: 'Given', json: assignment } },
        problems: ['not_found', 'unknown_role', 'unknown_project', 'role_held', 'four_eyes_required'],
      },
      async ({ principal, params, body }) => {
        const expiresAtMs = body.expires_at === null ? null : Date.parse(body.expires_at);
        const made = await assignments.grant(principal, params.id, { roleId: body.role_id, projectId: body.project_id, expiresAtMs });
        return { status: 201, json: assignmentJson(made) };
      },
    ),
    operation(
      {
        id: 'revokeUserRole', action: 'role.revoke', method: 'delete', path: '/api/users/{id}/roles/{assignment_id}', tag: TAG, access: 'administrator',
        summary: 'Take a role away',
        params: subjectParams.extend({ assignment_id: z.uuid() }),
        answers: { 204: { description: 'Taken away; it grants nothing from the next request on' } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        await assignments.revoke(principal, params.id, params.assignment_id);
        return {};
      },
    ),
  ];
}

function answer(one: Role): { readonly json: object; readonly etag: string } {
  return { json: roleJson(one), etag: String(one.version) };
}

function roleJson(one: Role): z.infer<typeof role> {
  return {
    id: one.id,
    name: one.name,
    description: one.description,
    permissions: [...one.permissions],
    is_system: one.isSystem,
    created_at: timeJson(one.createdAtMs),
    updated_at: timeJson(one.updatedAtMs),
    intact: one.intact,
  };
}

export function assignmentJson(one: Assignment): z.infer<typeof assignment> {
  return {
    id: one.id,
    user_id: one.userId,
    role_id: one.roleId,
    role: one.roleName,
    project_id: one.projectId,
    granted_by: one.grantedBy,
    granted_at: timeJson(one.grantedAtMs),
    expires_at: timeJson(one.expiresAtMs),
    intact: one.intact,
  };
}
