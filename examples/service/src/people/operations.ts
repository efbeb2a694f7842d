/** `/api/users`: the people of this deployment. Administrators see and change all; everybody else sees themself. */
import * as z from 'zod';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import type { ProblemCode } from '../http/problems.ts';
import type { StepUpAction } from '../auth/policy.ts';
import type { Principal } from '../auth/principal.ts';
import { subjectParams } from '../roles/operations.ts';
import type { AdministratorRequest } from './second-voice.ts';
import type { PeopleDirectory, PersonRecord } from './store.ts';

const TAG = 'People';

const listQuery = pageQuery.extend({
  email: z.string().min(1).max(254).transform((text) => text.toLowerCase()).optional().describe('Only those whose address begins with this.'),
});

const user = z
  .object({
    id: z.string(),
    email: z.string(),
    name: z.string(),
    is_administrator: z.boolean(),
    created_at: time,
    disabled_at: time.nullable().describe('Since when this person may not come in.'),
    intact: z.boolean().describe('False: somebody wrote into the database that this person administers. It counts for nothing.'),
  })
  .meta({ id: 'Person' });

const administratorRequest = z
  .object({
    id: z.uuid(),
    kind: z.enum(['make', 'unmake']).describe('Whether the person shall administer, or no longer.'),
    user_id: z.string(),
    requested_by: z.string(),
    requested_at: time,
    expires_at: time.describe('Until when another administrator can ask for the same, which makes it happen.'),
  })
  .meta({ id: 'AdministratorRequest' });

export function peopleOperations(people: PeopleDirectory): readonly Operation[] {
  const change = (
    spec: { readonly id: string; readonly action: string; readonly method: 'post' | 'put' | 'delete'; readonly path: `/${string}`; readonly summary: string; readonly description?: string; readonly stepUp?: StepUpAction; readonly problems: readonly ProblemCode[] },
    act: (principal: Principal, id: string) => Promise<PersonRecord>,
  ): Operation =>
    operation(
      { ...spec, tag: TAG, access: 'administrator', params: subjectParams, answers: { 200: { description: 'The person as they are now', json: user } } },
      async ({ principal, params }) => ({ json: userJson(await act(principal, params.id)) }),
    );

  const ofAdministrators = (
    spec: { readonly id: string; readonly action: string; readonly method: 'put' | 'delete'; readonly summary: string; readonly description: string; readonly problems: readonly ProblemCode[] },
    act: (principal: Principal, id: string) => Promise<PersonRecord | AdministratorRequest>,
  ): Operation =>
    operation(
      {
        ...spec, path: '/api/users/{id}/administrator', tag: TAG, access: 'administrator', stepUp: 'approve', params: subjectParams,
        answers: {
          200: { description: 'The person as they are now', json: user },
          202: { description: 'Written down: it happens when another administrator asks for the same', json: administratorRequest },
        },
      },
      async ({ principal, params }) => {
        const outcome = await act(principal, params.id);
        return 'subjectId' in outcome ? { status: 202, json: requestJson(outcome) } : { json: userJson(outcome) };
      },
    );

  return [
    operation(
      {
        id: 'listUsers', action: 'user.list', method: 'get', path: '/api/users', tag: TAG, access: 'administrator',
        summary: 'List people, newest first',
        query: listQuery,
        answers: { 200: { description: 'A page', json: pageOf(user) } },
      },
      async ({ query: { email = null, ...query } }) => ({ json: pageJson(await people.list({ ...pageRequest(query), emailPrefix: email }), userJson) }),
    ),
    operation(
      {
        id: 'getMe', action: 'user.read', method: 'get', path: '/api/users/me', tag: TAG, access: 'person',
        summary: 'Show who is signed in',
        answers: { 200: { description: 'The caller', json: user } },
      },
      async ({ principal }) => ({ json: userJson(await people.get(principal, principal.userId)) }),
    ),
    operation(
      {
        id: 'getUser', action: 'user.read', method: 'get', path: '/api/users/{id}', tag: TAG, access: 'person',
        summary: 'Show one person',
        params: subjectParams,
        answers: { 200: { description: 'The person', json: user } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => ({ json: userJson(await people.get(principal, params.id)) }),
    ),
    ofAdministrators(
      {
        id: 'makeAdministrator', action: 'user.make_administrator', method: 'put',
        summary: 'Make a person an administrator; where two administer, both must ask for it',
        description: 'Administrators manage people, roles, devices and provider keys. They read no secret that is not shared with them.',
        problems: ['not_found', 'illegal_transition'],
      },
      (principal, id) => people.makeAdministrator(principal, id),
    ),
    ofAdministrators(
      {
        id: 'unmakeAdministrator', action: 'user.unmake_administrator', method: 'delete',
        summary: 'Let a person administer no longer; of somebody else, two must ask for it',
        description: 'One administrator is always left. Where there is no third one who could agree, the operator does it on the host.',
        problems: ['not_found', 'last_administrator', 'four_eyes_required'],
      },
      (principal, id) => people.unmakeAdministrator(principal, id),
    ),
    operation(
      {
        id: 'listAdministratorRequests', action: 'user.list_administrator_requests', method: 'get', path: '/api/administrator-requests', tag: TAG, access: 'administrator',
        summary: 'List what one administrator has asked for and a second one has not yet, newest first',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(administratorRequest) } },
      },
      async ({ query }) => ({ json: pageJson(await people.listRequests(pageRequest(query)), requestJson) }),
    ),
    operation(
      {
        id: 'withdrawAdministratorRequest', action: 'user.withdraw_administrator_request', method: 'delete', path: '/api/administrator-requests/{id}', tag: TAG, access: 'administrator',
        summary: 'Take back what you have asked for',
        params: idParams,
        answers: { 204: { description: 'Taken back' } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        await people.withdrawRequest(principal, params.id);
        return {};
      },
    ),
    change(
      {
        id: 'disableUser', action: 'user.disable', method: 'post', path: '/api/users/{id}/disable',
        summary: 'Let a person in no longer',
        description:
          'Ends their sessions, suspends their devices and revokes the enrollment codes that are for them, at once; the tokens of their service accounts are refused meanwhile. What they own and what was shared stays as it is.',
        problems: ['not_found', 'illegal_transition'],
      },
      (principal, id) => people.disable(principal, id),
    ),
    change(
      {
        id: 'enableUser', action: 'user.enable', method: 'post', path: '/api/users/{id}/enable',
        summary: 'Let a disabled person in again',
        description: 'Their devices stay suspended until an administrator resumes them.',
        problems: ['not_found'],
      },
      (principal, id) => people.enable(principal, id),
    ),
  ];
}

function requestJson(one: AdministratorRequest): z.infer<typeof administratorRequest> {
  return {
    id: one.id,
    kind: one.kind,
    user_id: one.subjectId,
    requested_by: one.requestedBy,
    requested_at: timeJson(one.requestedAtMs),
    expires_at: timeJson(one.expiresAtMs),
  };
}

function userJson(one: PersonRecord): z.infer<typeof user> {
  return {
    id: one.id,
    email: one.email,
    name: one.name,
    is_administrator: one.isAdministrator,
    created_at: timeJson(one.createdAtMs),
    disabled_at: timeJson(one.disabledAtMs),
    intact: one.intact,
  };
}
