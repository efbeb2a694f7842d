/** `/api/projects`. */
import * as z from 'zod';
import { asUser } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import { printable } from '../http/text.ts';
import { modelPatterns } from '../llm/model-patterns.ts';
import type { Assignments } from '../roles/assignments.ts';
import { assignmentJson, assignmentSchema } from '../roles/operations.ts';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { Project, Projects } from './store.ts';

const TAG = 'Projects';

/** UUIDs, but for the project that every deployment begins with. */
export const projectId = z.union([z.uuid(), z.literal('default')]);
const params = z.strictObject({ id: projectId });

const name = printable(1, 100);
const environment = z.enum(['production', 'staging', 'development', 'test']).describe('What it is for; requests of tools for keys of production are judged more strictly.');

const createBody = z.strictObject({ name, environment: environment.default('production') });
const updateBody = z
  .strictObject({ name: name.optional(), environment: environment.optional(), allowed_models: modelPatterns.optional() })
  .refine((body) => Object.keys(body).length > 0, 'names nothing to change');

const project = z
  .object({
    id: projectId,
    name: z.string(),
    environment: z.string(),
    allowed_models: z.array(z.string()).readonly().nullable().describe('To which models all its devices are held, each beside its own list.'),
    owner_id: z.string().describe('"system" for the project that every deployment begins with.'),
    created_at: time,
    archived_at: time.nullable(),
  })
  .meta({ id: 'Project' });

export interface ProjectOperationsOptions {
  readonly sql: SqlClient;
  readonly projects: Projects;
  readonly assignments: Assignments;
}

export function projectOperations({ sql, projects, assignments }: ProjectOperationsOptions): readonly Operation[] {
  return [
    operation(
      {
        id: 'listProjects', action: 'project.list', method: 'get', path: '/api/projects', tag: TAG, access: 'projects:read',
        summary: 'List projects, newest first',
        description: 'One’s own, and those that one’s roles let one see.',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(project) } },
      },
      async ({ principal, query }) => ({ json: pageJson(await projects.list(principal, pageRequest(query)), projectJson) }),
    ),
    operation(
      {
        id: 'createProject', action: 'project.create', method: 'post', path: '/api/projects', tag: TAG, access: 'projects:write', idempotent: true,
        summary: 'Make a project of one’s own',
        body: createBody,
        answers: { 201: { description: 'The project', json: project } },
        problems: ['quota_exceeded'],
      },
      async ({ principal, body }) => ({ status: 201, ...answer(await projects.create(principal, body)) }),
    ),
    operation(
      {
        id: 'getProject', action: 'project.read', method: 'get', path: '/api/projects/{id}', tag: TAG, access: 'projects:read',
        summary: 'Show one project',
        params,
        answers: { 200: { description: 'The project', json: project } },
        problems: ['not_found'],
      },
      async ({ principal, params: { id } }) => answer(await projects.get(principal, id)),
    ),
    operation(
      {
        id: 'updateProject', action: 'project.update', method: 'patch', path: '/api/projects/{id}', tag: TAG, access: 'projects:write',
        summary: 'Rename a project, say what it is for, or to which models it is held',
        params,
        body: updateBody,
        answers: { 200: { description: 'The project as it is now', json: project } },
        problems: ['not_found', 'project_archived', 'precondition_failed'],
      },
      async ({ principal, params: { id }, body: { name: newName, environment: newEnvironment, allowed_models: allowedModels }, ifMatch }) => {
        const change = { ...(newName !== undefined && { name: newName }), ...(newEnvironment !== undefined && { environment: newEnvironment }), ...(allowedModels !== undefined && { allowedModels }) };
        return answer(await projects.update(principal, id, change, ifMatch));
      },
    ),
    operation(
      {
        id: 'archiveProject', action: 'project.archive', method: 'post', path: '/api/projects/{id}/archive', tag: TAG, access: 'projects:write',
        summary: 'End a project for good',
        description:
          'Refused while a device that is not revoked, or a provider key in use, is in it. Afterwards nothing comes into it, enrollment codes for it are worth nothing, and roles held in it grant nothing. Secrets in it stay with their owners.',
        params,
        answers: { 200: { description: 'The project as it is now', json: project } },
        problems: ['not_found', 'project_in_use', 'precondition_failed'],
      },
      async ({ principal, params: { id }, ifMatch }) => answer(await projects.archive(principal, id, ifMatch)),
    ),
    operation(
      {
        id: 'listProjectMembers', action: 'project.list_members', method: 'get', path: '/api/projects/{id}/members', tag: TAG, access: 'projects:read',
        summary: 'List who holds roles in a project, newest first',
        description: 'For its owner and for those who may change it. Who holds a role everywhere is not among them.',
        params,
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(assignmentSchema) } },
        problems: ['not_found'],
      },
      async ({ principal, params: { id }, query }) => {
        await asUser(sql, principal.userId, (tx) => projects.demandIn(tx, principal, id, 'projects:write'));
        return { json: pageJson(await assignments.listOfProject(principal, id, pageRequest(query)), assignmentJson) };
      },
    ),
  ];
}

function answer(one: Project): { readonly json: object; readonly etag: string } {
  return { json: projectJson(one), etag: String(one.version) };
}

function projectJson(one: Project): z.infer<typeof project> {
  return {
    id: one.id,
    name: one.name,
    environment: one.environment,
    allowed_models: one.allowedModels,
    owner_id: one.ownerId,
    created_at: timeJson(one.createdAtMs),
    archived_at: timeJson(one.archivedAtMs),
  };
}
