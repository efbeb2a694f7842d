/**
 * Which models a call names, for devices and projects that are held to a list of them. A provider's own file says where its dialect
 * has them; here is how a body is read for that. Whatever two readers could read differently names nothing: where models are
 * limited, such a call is refused.
 */
import type { VerifiedRequest } from '@keyguard/server-verifier';
import { topMembers } from './json-members.ts';
import { formFields } from './form-fields.ts';

/** What is known of the models of a call. */
export type CallModels =
  /** All that it may run; at least one. */
  | { readonly kind: 'named'; readonly names: readonly string[] }
  /** It runs none, and gives away nothing but which there are. */
  | { readonly kind: 'none' }
  /** It must name one, and does so in a way that could be read differently, or not at all. */
  | { readonly kind: 'unclear' }
  /** What it runs is named in another place than in this call, or nobody here knows what it does. */
  | { readonly kind: 'elsewhere' };

export const NO_MODEL: CallModels = Object.freeze({ kind: 'none' });
export const UNCLEAR: CallModels = Object.freeze({ kind: 'unclear' });
export const ELSEWHERE: CallModels = Object.freeze({ kind: 'elsewhere' });

/** Of a call, what may say which models it runs. All of it is signed and untrusted. */
export type ModelQuestion = Pick<VerifiedRequest, 'method' | 'query' | 'contentType' | 'body'>;

/** What a body says of models. */
export interface BodyModels {
  /** The model of the call itself; `null` where there is no such member. */
  readonly model: string | null;
  /** Those that a tool or a part of a batch brings along. */
  readonly inside: readonly string[];
}

// A gateway or a dialect that takes further models from these would run them unseen.
const FURTHER: ReadonlySet<string> = new Set(['models', 'fallbacks', 'fallback_models', 'data_sources', 'datasources']);
// Lists and objects in which a model is named one level deeper.
const HOLDERS: ReadonlySet<string> = new Set(['tools', 'requests', 'generatecontentrequest', 'generate_content_request']);

// A tool that runs a model of the provider's choice where it names none.
const DRAWS = 'image_generation';

const JSON_TYPE = /^application\/json(?:; ?charset="?utf-8"?)?$/i;
const FORM_TYPE = /^multipart\/form-data; ?boundary=(?:"([^"\\]{1,70})"|([A-Za-z0-9'+_.-]{1,70}))$/i;

/** The name as the most generous reader would take it: some compare names of members without regard to case. */
const folded = (name: string): string => name.normalize('NFKC').toLowerCase();

/** The models that a JSON body or a form names; `null` for a body of another kind, and for one that could be read differently. */
export function modelsInBody({ contentType, body }: Pick<ModelQuestion, 'contentType' | 'body'>): BodyModels | null {
  if (contentType === null) return null;
  if (JSON_TYPE.test(contentType)) return modelsInJson(body);
  const [, quoted, bare] = FORM_TYPE.exec(contentType) ?? [];
  const boundary = quoted ?? bare;
  return boundary === undefined ? null : modelsInForm(body, boundary);
}

function modelsInJson(body: Uint8Array): BodyModels | null {
  const members = topMembers(body, (name) => HOLDERS.has(folded(name)));
  if (members === null) return null;
  let model: string | null = null;
  const inside: string[] = [];
  const held = new Set<string>();
  const [drawing, naming] = [new Set<number>(), new Set<number>()];
  for (const { name, text, holder, part } of members) {
    const known = folded(name);
    if (holder !== null) {
      if (known === 'type' && text === DRAWS) drawing.add(part);
      if (known !== 'model') continue;
      if (name !== 'model' || text === null) return null;
      naming.add(part);
      inside.push(text);
    } else if (known === 'model') {
      if (name !== 'model' || model !== null || text === null) return null;
      model = text;
    } else if (FURTHER.has(known)) {
      return null;
    } else if (HOLDERS.has(known)) {
      if (held.has(known)) return null;
      held.add(known);
    }
  }
  return [...drawing].every((part) => naming.has(part)) ? { model, inside } : null;
}

function modelsInForm(body: Uint8Array, boundary: string): BodyModels | null {
  const fields = formFields(body, boundary);
  if (fields === null) return null;
  let model: string | null = null;
  for (const { name, text } of fields) {
    const known = folded(name.split('[', 1)[0]!);
    if (FURTHER.has(known) || HOLDERS.has(known)) return null;
    if (known !== 'model') continue;
    if (name !== 'model' || model !== null || text === null) return null;
    model = text;
  }
  return { model, inside: [] };
}

/** Of a call that names its model in its body. */
export function namedInBody(question: ModelQuestion): CallModels {
  const found = modelsInBody(question);
  return found === null || found.model === null || found.model === '' ? UNCLEAR : { kind: 'named', names: [found.model, ...found.inside] };
}
