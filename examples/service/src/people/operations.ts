/** `/api/users`: the people of this deployment. Administrators see and change all; everybody else sees themself. */
import * as z from 'zod';
import { operation, type Operation } from '../http/operations.ts';
import { pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import type { ProblemCode } from '../http/problems.ts';
import type { StepUpAction } from '../auth/policy.ts';
import type { Principal } from '../auth/principal.ts';
import { subjectParams } from '../roles/operations.ts';
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

export function peopleOperations(people: PeopleDirectory): readonly Operation[] {
  const change = (
    spec: { readonly id: string; readonly action: string; readonly method: 'post' | 'put' | 'delete'; readonly path: `/${string}`; readonly summary: string; readonly description?: string; readonly stepUp?: StepUpAction; readonly problems: readonly ProblemCode[] },
    act: (principal: Principal, id: string) => Promise<PersonRecord>,
  ): Operation =>
    operation(
      { ...spec, tag: TAG, access: 'administrator', params: subjectParams, answers: { 200: { description: 'The person as they are now', json: user } } },
      async ({ principal, params }) => ({ json: userJson(await act(principal, params.id)) }),
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
    change(
      {
        id: 'makeAdministrator', action: 'user.make_administrator', method: 'put', path: '/api/users/{id}/administrator',
        stepUp: 'approve',
        summary: 'Make a person an administrator',
        description: 'Administrators manage people, roles, devices and provider keys. They read no secret that is not shared with them.',
        problems: ['not_found', 'illegal_transition'],
      },
      (principal, id) => people.makeAdministrator(principal, id),
    ),
    change(
      {
        id: 'unmakeAdministrator', action: 'user.unmake_administrator', method: 'delete', path: '/api/users/{id}/administrator',
        summary: 'Let a person administer no longer',
        description: 'One administrator is always left.',
        problems: ['not_found', 'last_administrator'],
      },
      (principal, id) => people.unmakeAdministrator(principal, id),
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
